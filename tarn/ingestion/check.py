"""What a declared system can and cannot do, found out without loading anything."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.declarations.files import FilesTable
from tarn.ingestion.declarations.rest_api import RestTable
from tarn.ingestion.declarations.sql_database import SqlTable
from tarn.ingestion.engine import told
from tarn.ingestion.peek import Peek, Seen, peek
from tarn.ingestion.sources import BATCH_ROWS
from tarn.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableCheck:
    """One table, looked at."""

    name: str
    how: str
    """How it will be loaded."""
    rows: str = ""
    remarks: tuple[str, ...] = ()
    """What will work, but perhaps not as meant."""
    error: str | None = None
    """Why a load would fail."""


@dataclass(frozen=True)
class SystemCheck:
    """One system, looked at."""

    name: str
    kind: str
    can: tuple[str, ...] = ()
    """What it says of itself."""
    tables: tuple[TableCheck, ...] = ()
    error: str | None = None
    """Why it could not even be opened."""

    @property
    def failed(self) -> bool:
        return bool(self.error) or any(table.error for table in self.tables)


def check(wanted: Declared, home: Settings) -> SystemCheck:
    """Connect, and read the beginning of each table."""
    name, kind = wanted.name, wanted.system.kind
    secrets: frozenset[str] = frozenset()
    try:
        with peek(wanted, home) as opened:
            secrets = opened.source.secrets
            can = tuple(opened.source.check())
            tables = tuple(_table(opened, table) for table in opened.source.tables)
            return SystemCheck(name, kind, can, tables)
    except Exception as failure:
        log.debug("%s", name, exc_info=True)
        return SystemCheck(name, kind, error=told(failure, wanted, ("connection",), secrets))


def _table(opened: Peek, name: str) -> TableCheck:
    how = loads(opened.source.tables[name])
    try:
        seen = opened.table(name, BATCH_ROWS)
    except Exception as failure:
        log.debug("%s.%s", opened.declared.name, name, exc_info=True)
        error = told(failure, opened.declared, ("tables", name), opened.source.secrets)
        return TableCheck(name, how, error=error)
    return TableCheck(name, how, _rows(seen), tuple(_remarks(opened.source.tables[name], seen)))


def loads(spec: Table) -> str:
    """How a table is loaded each time, in a few words."""
    key = f" by {', '.join(spec.primary_key)}" if spec.primary_key else ""
    reads = "everything"
    if isinstance(spec, FilesTable):
        reads = "new and changed files"
    elif spec.cursor and _can_be_asked(spec):
        less = f" less {spec.overlap}" if isinstance(spec, SqlTable) and spec.overlap else ""
        reads = f"rows from the highest {spec.cursor}{less} on"
    does = {
        "merge": f"updates rows{key}, adds new ones",
        "append": f"adds what is new{key}",
        "replace": "takes the place of what was there",
    }
    if spec.write == "replace":
        reads = "everything"
    return f"reads {reads}; {does[spec.write]}"


def _can_be_asked(spec: Table) -> bool:
    """Whether the source gives only the rows from a cursor on."""
    if isinstance(spec, RestTable):
        return spec.endpoint.incremental is not None
    return isinstance(spec, SqlTable)


def _rows(seen: list[Seen]) -> str:
    return _count(seen[0]) if seen else ""


def _count(seen: Seen) -> str:
    rows = seen.rows.num_rows + len(seen.rejected)
    return f"{rows:,} row{'' if rows == 1 else 's'}{'' if seen.is_all else ' or more'}"


def _remarks(spec: Table, seen: list[Seen]) -> Iterator[str]:
    if not spec.primary_key and spec.write != "replace":
        yield "no primary_key: a row that changes at the source is added once more"
    if spec.cursor and not isinstance(spec, FilesTable) and not _can_be_asked(spec):
        yield f"cursor {spec.cursor}: the source is not asked by it, see endpoint.incremental"
    for table in seen:
        yield from (f"{table.table}: {note}" for note in table.notes)
        if table.rejected:
            first = table.rejected[0]
            at = f" ({first.place})" if first.place else ""
            some = f"{len(table.rejected):,} of {_count(table)}"
            yield f"{table.table}: quarantine will take {some}, first because {first.reason}{at}"
