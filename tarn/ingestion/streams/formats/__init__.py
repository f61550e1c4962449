"""Formats of messages: each turns a batch of them into rows, and says which it cannot read.

Whatever the format: objects within become columns (page__type), lists JSON text, and a message is
a row or unreadable by itself, whatever stands next to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import pyarrow as pa

from tarn.errors import TarnError
from tarn.ingestion.declarations.stream import EVENT_DATE, OFFSET, PARTITION, SENT_AT
from tarn.ingestion.landed import PLACE
from tarn.ingestion.names import TAKEN, snake_case

TOMBSTONE = "no value (a tombstone)"
_OURS = TAKEN | {PLACE, PARTITION, OFFSET, SENT_AT, EVENT_DATE}
_SHOWN = 10_000


class RegistryAwayError(TarnError, ConnectionError):
    """The schema registry does not answer. No message is bad for that: decode them again later."""


class UnreadableError(ValueError):
    """A message that is no row, and why."""


@dataclass(frozen=True)
class Unreadable:
    """A message that cannot be a row."""

    index: int
    """In the values that were given."""
    reason: str
    text: str
    """The message, of a binary one as hexadecimal digits; cut if it is long."""

    @classmethod
    def of(cls, index: int, reason: str, value: bytes | None, is_text: bool = True) -> "Unreadable":
        shown = (value or b"")[:_SHOWN]
        return cls(index, reason, shown.decode("utf-8", "replace") if is_text else shown.hex())


@dataclass(frozen=True)
class Decoded:
    """What a batch of messages came to."""

    rows: pa.RecordBatch
    """Columns that are declared, or came with a value. In the order of the messages."""
    taken: pa.Array
    """Indices (int64) of the messages that became rows."""
    rejected: Sequence[Unreadable]
    spelt: Mapping[str, str]
    """Fields as messages spell them (Page.Type), by column."""
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """What columns that come as text are meant to be, where neither table nor declaration says:
    most of their values are of that type."""


class Decoder(Protocol):
    """Turns messages of one table into rows."""

    def decode(self, values: Sequence[bytes | None], known: pa.Schema | None) -> Decoded:
        """`known` is the table's schema so far: values are read as it says where they are of its
        types, and are text or of their own type where they are not, for the contract to judge.

        A TarnError says that no message can be decoded now (RegistryAwayError: the registry does
        not answer): nothing may be committed, and the same messages are to be decoded again."""


@lru_cache(4096)
def columns(above: tuple[str, ...], keys: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of an object's keys; raises UnreadableError for a name that is Tarn's own."""
    start = "".join(f"{snake_case(key)}__" for key in above)
    names = tuple(start + snake_case(key) for key in keys)
    if not above:
        for key, name in zip(keys, names, strict=True):
            if name in _OURS:
                raise UnreadableError(f"a field may not be called {key}")
    return names


def rows(columns: Mapping[str, pa.Array], count: int) -> pa.RecordBatch:
    """A batch of so many rows, even without columns."""
    if columns:
        return pa.RecordBatch.from_pydict(dict(columns))
    return pa.RecordBatch.from_struct_array(pa.array([{}] * count, pa.struct([])))
