"""Kinds of source: each gives dlt resources, and what the loader must know about their rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
from dlt.common.normalizers.naming.snake_case import NamingConvention
from dlt.extract import DltResource, DltSource

from tarn.errors import TarnError
from tarn.ingestion.landed import Landed

BATCH_ROWS = 65_536
"""Rows a source gives at a time: large enough for Arrow, small enough to hold a few of."""


class ReadAgainError(Exception):
    """Raised in the middle of reading by a source that found a better way; `open` then takes it."""


@dataclass(frozen=True)
class Extract:
    """What one table of a source gives in one load."""

    open: Callable[[], DltResource | DltSource]
    """A resource of Arrow batches that all have one schema; called again to read anew. With
    `is_objects` a source whose resource of the table's name gives dictionaries."""
    is_objects: bool = False
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Types that the source declares where its batches carry others."""
    is_unique: bool = False
    """The source itself sees to it that no two rows share the primary key."""
    redelivered: str | None = "true"
    """Condition on the lake's rows: those that may come again, in SQL. None if none can."""
    is_changed: bool = False
    """The source is known to have changed since the last load."""
    files: tuple[str, ...] = ()
    """Values of `_source_file` whose rows in the lake these rows take the place of."""
    transaction: tuple[str, int] | None = None
    """Version of the source, kept in the commit of the rows."""
    remember: Callable[[str], None] = lambda load_id: None
    """To be called with the load's name when the rows are in the lake."""


class Source(Protocol):
    """One upstream system."""

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that no message may contain."""

    def extract(self, table: str, landed: Landed) -> Extract | None:
        """What a table gives beyond what has landed; None if the source has not changed."""


def column_names(names: Sequence[str], where: str) -> list[str]:
    """Names of a source's columns in the lake, spelt as dlt spells them: snake case."""
    naming = NamingConvention()
    spelt = [naming.normalize_identifier(name) for name in names]
    twice = {name for name in spelt if spelt.count(name) > 1}
    if twice:
        clashing = [name for name, new in zip(names, spelt, strict=True) if new in twice]
        raise TarnError(f"columns {', '.join(clashing)} have the same name in snake case", where)
    return spelt
