"""What declarations of every kind of stream may say."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from tarn.ingestion.declarations.base import System, Table
from tarn.strict_yaml import Spec, Time, duration

__all__ = ["Time", "duration"]

PARTITION = "_partition"
OFFSET = "_offset"
SENT_AT = "_sent_at"
EVENT_DATE = "_event_date"


class JsonFormat(Spec):
    type: Literal["json"] = "json"


class AvroFormat(Spec):
    type: Literal["avro"]
    schema_file: str | None = None
    """File with the schema (.avsc) of messages that bear none, from the project's folder. Without
    it messages name their schema in the registry, as Confluent's serializers write them."""


class ProtobufFormat(Spec):
    type: Literal["protobuf"]
    descriptor_file: str | None = None
    """File with the compiled schema (protoc --include_imports --descriptor_set_out), from the
    project's folder. Without it messages name their schema in the registry."""
    message: str | None = None
    """Full name of the message in the descriptor file: shop.v1.Order."""


Format: TypeAlias = Annotated[JsonFormat | AvroFormat | ProtobufFormat, Field(discriminator="type")]


class Registry(Spec):
    """A schema registry with Confluent's interface."""

    url: str
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    """Certificate of the authority that signed the registry's."""


class StreamTable(Table):
    format: Format = JsonFormat()
    """What messages are. Objects within become columns (page__type), lists stay JSON text."""
    event_time: str | None = None
    """Column that says when it happened. A table may then be kept apart by its day:
    partition_by: [_event_date]; without one, or null, that is the day of the message."""
    write: Literal["append"] = "append"
    """Each message is a row."""
    primary_key: tuple[str, ...] = ()
    """Columns that tell events apart; of those with the same key within deduplicate_within only
    the first is kept."""
    deduplicate_within: Time = "1h"
    """How long after its first an event may come again and be known, by the clock of loads."""
    commit_every: Time = "10s"
    """How long messages may wait until they can be queried."""
    commit_rows: Annotated[int, Field(gt=0)] = 500_000
    """So many messages are committed sooner."""

    @model_validator(mode="after")
    def _streams_have_no_cursor(self) -> "StreamTable":
        if self.cursor or self.allow_empty:
            raise ValueError("a stream has no cursor and is never empty; remove the key")
        return self


class StreamSystem(System):
    """Common to all kinds."""
