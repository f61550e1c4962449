"""Amazon Kinesis Data Streams, and services that speak like it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tarn.ingestion.declarations.base import Name
from tarn.ingestion.declarations.stream import StreamSystem, StreamTable
from tarn.strict_yaml import Spec


class KinesisConnection(Spec):
    """Credentials are found where AWS's tools look (environment, profile files, SSO, the machine's
    role), unless keys are given here."""

    region: str
    """The streams' region: eu-central-1."""
    endpoint_url: Annotated[str, Field(pattern=r"^(https?://|\$\{)")] | None = None
    """Address of another service than Amazon's. AWS_ENDPOINT_URL_KINESIS may say it too;
    AWS_ENDPOINT_URL is the lake's and does not count here."""
    profile: str | None = None
    """Profile in AWS's files whose credentials are taken."""
    access_key_id: str | None = None
    """Key of its own, where the environment's is for another service."""
    secret_access_key: str | None = None
    role: Annotated[str, Field(pattern=r"^(arn:|\$\{)")] | None = None
    """Role to take on with these credentials: arn:aws:iam::123456789012:role/reader. It is renewed
    as it runs out."""

    @model_validator(mode="after")
    def _one_way_in(self) -> "KinesisConnection":
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key need each other")
        if self.profile and self.access_key_id:
            raise ValueError("profile and access_key_id are two credentials: keep one")
        return self


class KinesisTable(StreamTable):
    stream: str
    """Name of the stream, or its ARN if it is another account's. Records that the Kinesis Producer
    Library has put together are taken apart."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where the first reading begins: with what the stream still has (earliest), or with what
    comes from now on (latest)."""


class KinesisSystem(StreamSystem):
    kind: Literal["kinesis"]
    connection: KinesisConnection
    tables: dict[Name, KinesisTable] = Field(min_length=1)
