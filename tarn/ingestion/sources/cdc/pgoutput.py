"""What PostgreSQL's logical decoding says, message by message (plugin pgoutput, protocol 1).

See "Logical Replication Message Formats" in PostgreSQL's manual. Values are in their text form.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

UNCHANGED = "\0"
"""In place of a large value that an update has left as it was: the log does not repeat it. No
text in PostgreSQL contains this character."""
_EPOCH = datetime(2000, 1, 1)

Values: TypeAlias = Sequence[str | None]


@dataclass(frozen=True)
class Begin:
    """The changes up to the next one are of one transaction, in the order of commits."""

    lsn: int
    """Where in the log it was committed."""
    at: datetime
    """When it was committed; UTC without zone."""


@dataclass(frozen=True)
class Column:
    name: str
    type_oid: int
    modifier: int


@dataclass(frozen=True)
class Relation:
    """A table as it was when the changes that follow were made."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Change:
    """A row: before (None if it is new, or if its key stays) and after (None if it is deleted)."""

    relation: int
    before: Values | None
    after: Values | None
    is_before_whole: bool = False
    """Whether `before` has all columns (replica identity full), or null for all but keys."""


@dataclass(frozen=True)
class Truncate:
    relations: tuple[int, ...]


Message: TypeAlias = Begin | Relation | Change | Truncate


def decode(data: bytes) -> Message | None:
    """The message; None for one that says nothing of rows (commit, origin, type)."""
    reader = _Reader(data)
    match reader.character():
        case "B":
            lsn, microseconds = reader.take("!Qq")
            return Begin(lsn, _EPOCH + timedelta(microseconds=microseconds))
        case "R":
            return _relation(reader)
        case "I" | "U" | "D":
            return _change(reader)
        case "T":
            count, _ = reader.take("!IB")
            return Truncate(reader.take(f"!{count}I"))
    return None


def _relation(reader: "_Reader") -> Relation:
    (oid,) = reader.take("!I")
    schema, name = reader.text(), reader.text()
    _, count = reader.take("!BH")
    columns = []
    for _ in range(count):
        reader.take("!B")
        column = reader.text()
        columns.append(Column(column, *reader.take("!Ii")))
    # The log leaves out the name of the one schema that needs none.
    return Relation(oid, schema or "pg_catalog", name, tuple(columns))


def _change(reader: "_Reader") -> Change:
    (relation,) = reader.take("!I")
    before: Values | None = None
    first = kind = reader.character()
    if first in "KO":
        before = reader.values()
        kind = reader.character() if reader.is_left else ""
    after = reader.values() if kind == "N" else None
    return Change(relation, before, after, first == "O")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def is_left(self) -> bool:
        return self.at < len(self.data)

    def take(self, form: str) -> tuple[int, ...]:
        taken = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return taken

    def character(self) -> str:
        self.at += 1
        return chr(self.data[self.at - 1])

    def text(self) -> str:
        end = self.data.index(0, self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text

    def values(self) -> Values:
        data, at = self.data, self.at
        count = int.from_bytes(data[at : at + 2])
        at += 2
        values: list[str | None] = []
        for _ in range(count):
            kind = data[at]
            at += 1
            if kind == _TEXT:
                end = at + 4 + int.from_bytes(data[at : at + 4])
                values.append(data[at + 4 : end].decode())
                at = end
            else:
                values.append(None if kind == _NULL else UNCHANGED)
        self.at = at
        return values


_TEXT, _NULL = ord("t"), ord("n")
