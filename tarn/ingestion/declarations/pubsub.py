"""Subscriptions of Google's Pub/Sub."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tarn.ingestion.declarations.base import Name
from tarn.ingestion.declarations.stream import StreamSystem, StreamTable
from tarn.strict_yaml import Spec

_SUBSCRIPTION = r"^([^/]+|projects/[^/]+/subscriptions/[^/]+)$"


class PubsubConnection(Spec):
    project: str
    """Google Cloud project of the subscriptions."""
    credentials_file: str | None = None
    """File with the key of a service account, from the project's folder. Without it Google's
    default credentials are taken: GOOGLE_APPLICATION_CREDENTIALS, or those of the machine."""


class PubsubTable(StreamTable):
    subscription: Annotated[str | None, Field(pattern=_SUBSCRIPTION)] = None
    """Name of the subscription if it differs from the key, with its project if that is another:
    projects/shop/subscriptions/orders. Nobody else may pull from it."""


class PubsubSystem(StreamSystem):
    kind: Literal["pubsub"]
    connection: PubsubConnection
    tables: dict[Name, PubsubTable] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_table_each(self) -> "PubsubSystem":
        names = [self.subscription(table) for table in self.tables]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two tables would share the messages of {', '.join(sorted(twice))}")
        return self

    def subscription(self, table: str) -> str:
        """Its full name."""
        name = self.tables[table].subscription or table
        return name if "/" in name else f"projects/{self.connection.project}/subscriptions/{name}"
