"""Kinds of source: each gives dlt resources, and what the loader must know about their rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
from dlt.extract import DltResource, DltSource

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.landed import Landed

BATCH_ROWS = 65_536
"""Rows a source gives at a time: large enough for Arrow, small enough to hold a few of."""


class ReadAgainError(Exception):
    """Raised in the middle of reading by a source that knows better now; `open` then acts on it.
    It must not be raised for ever."""


@dataclass(frozen=True)
class Rejected:
    """What could not even be parsed: a ragged line, broken JSON, a whole file. A resource may
    give it between its batches or objects; it counts as read, and goes to quarantine."""

    row: Mapping[str, Any]
    """As much of it as is known, by name."""
    reason: str
    place: str
    """`orders.csv:17`, or the file alone."""


@dataclass(frozen=True)
class Extract:
    """What one table of a source gives in one load."""

    open: Callable[[], DltResource | DltSource]
    """A resource of Arrow batches that all have one schema; called again to read anew. With
    `is_objects` a source whose resource of the table's name gives dictionaries. Either may have
    a text `_place`, and `Rejected` among them."""
    is_objects: bool = False
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Types that the source declares where its batches carry others."""
    spelt: Mapping[str, str] = field(default_factory=dict)
    """Names as the source spells them, by name in the lake; complete when its first batch is
    there."""
    rows: int | None = None
    """How many come, if that is known."""
    lists: Sequence[str] = ()
    """Fields of objects that have become tables of their own."""
    is_unique: bool = False
    """The source itself sees to it that no two rows share the primary key."""
    redelivered: str | None = "true"
    """Condition on the lake's rows: those that may come again, in SQL. None if none can."""
    is_changed: bool = False
    """The source is known to have changed since the last load."""
    files: Sequence[str] = ()
    """Values of `_source_file` whose rows in the lake these rows take the place of; as of the
    last call of `open`."""
    transaction: tuple[str, int] | None = None
    """Version of the source, kept in the commit of the rows."""
    notes: Sequence[str] = ()
    """What is to be told of the reading; complete when all has been read."""
    remember: Callable[[str], None] = lambda load_id: None
    """To be called with the load's name when the rows are in the lake."""
    superseded: Callable[[], int] = lambda: 0
    """How many rows were read beside those given, as later ones took their place."""
    deleted: str | None = None
    """Boolean column, not kept: a merge deletes the row of a key for which it is true."""
    is_more: bool = False
    """There is more to load when these rows are in the lake."""


@dataclass(frozen=True)
class Offered:
    """A table that a system has, as its declaration would name it."""

    name: str
    """Key under `tables:`."""
    spec: Mapping[str, Any]
    """What the declaration says under that key, in YAML's words."""
    columns: Mapping[str, str]
    """Type of each column in the lake by name, in YAML's words."""
    description: str = ""
    """What the system itself says of the table."""
    comments: Mapping[str, str] = field(default_factory=dict)
    """What it says of columns, by their name in the lake."""


def unlisted(declared: Declared) -> TarnError:
    """For systems that do not say which tables they have."""
    return TarnError(
        f"a system of kind {declared.system.kind} does not say which tables it has",
        declared.file.where("kind"),
        "name them under tables:",
    )


class Source(Protocol):
    """One upstream system. Making one connects no further than its address needs."""

    declared: Declared
    secrets: frozenset[str]
    """Texts that no message may contain."""

    @property
    def tables(self) -> Mapping[str, Table]:
        """The tables to load; those that a pattern stands for are named."""
        return self.declared.system.tables

    def extract(self, table: str, landed: Landed) -> Extract | None:
        """What a table gives beyond what has landed; None if the source has not changed."""

    def close(self) -> None:
        """Every table has been loaded, or has failed."""
        return None

    def check(self) -> list[str]:
        """What the system can and cannot do, a line each; raises TarnError if it is not there."""
        return []

    def offered(self) -> list[Offered]:
        """All tables that the system says it has."""
        raise unlisted(self.declared)
