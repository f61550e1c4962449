"""Topics of Apache Kafka, and of whatever speaks its protocol."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from tarn.ingestion.declarations.base import Name
from tarn.ingestion.declarations.stream import Registry, StreamSystem, StreamTable
from tarn.strict_yaml import Spec

_OURS = frozenset(
    {
        "bootstrap.servers",
        "metadata.broker.list",
        "group.id",
        "auto.offset.reset",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "partition.assignment.strategy",
    }
)


class KafkaConnection(Spec):
    bootstrap_servers: str
    """`host:port`, several with commas between them."""
    options: Mapping[str, str | int | float | bool] = {}
    """Of librdkafka, by their own names: security.protocol, sasl.username, ssl.ca.location …"""
    schema_registry: Registry | None = None
    """Where the schemas of Avro and protobuf messages are."""

    @field_validator("options")
    @classmethod
    def _none_is_ours(cls, options: Mapping[str, object]) -> Mapping[str, object]:
        if taken := sorted(_OURS.intersection(options)):
            raise ValueError(f"{', '.join(taken)}: Tarn sets that itself")
        return options


class KafkaTable(StreamTable):
    topic: str | None = None
    """Name of the topic if it differs from the key."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where reading begins in a partition of which nothing has been read yet."""


class KafkaSystem(StreamSystem):
    kind: Literal["kafka"]
    connection: KafkaConnection
    tables: dict[Name, KafkaTable] = Field(min_length=1)

    def topic(self, table: str) -> str:
        return self.tables[table].topic or table
