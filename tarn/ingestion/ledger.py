"""What loads leave behind beside the rows: `tarn.loads`, their history, and `tarn.files`, the
files that have been loaded, by content."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Literal

import pyarrow as pa

from tarn.ingestion.drift import Change
from tarn.ingestion.landed import Desk
from tarn.storage.clock import now
from tarn.storage.duck import select_from
from tarn.storage.lake import Lake
from tarn.storage.loads import LOADS
from tarn.storage.upkeep.maintain import FAILURES, rewritten
from tarn.storage.writer import write

log = logging.getLogger(__name__)

FILES = "tarn.files"
ALL = "*"
"""Stands for the tables of a system that could not even be asked which it has."""
CHECK_AGAIN = timedelta(hours=1)
"""A load that found nothing is recorded once in so long: freshness can be told, and looking
every minute does not fill the lake."""
_MOST_FILES = 200
"""In the history, before they are made one."""
_SHORTEST = timedelta(minutes=10)
"""Not even a system that is due each minute has more of its checks recorded."""
_ONE_AT_A_TIME = Lock()

Status = Literal["loaded", "unchanged", "failed", "replayed"]
_TEXT, _COUNT, _INSTANT = pa.string(), pa.int64(), pa.timestamp("us")
_LOADS = pa.schema(
    {
        "load_id": _TEXT,
        "system": _TEXT,
        "table_name": _TEXT,
        "status": _TEXT,
        "rows_read": _COUNT,
        "rows_accepted": _COUNT,
        "rows_quarantined": _COUNT,
        "rows_deduplicated": _COUNT,
        "started_at": _INSTANT,
        "finished_at": _INSTANT,
        "error": _TEXT,
        "delivered": _TEXT,
    }
)
_FILES = pa.schema(
    {
        "system": _TEXT,
        "table_name": _TEXT,
        "path": _TEXT,
        "fingerprint": _TEXT,
        "bytes": _COUNT,
        "modified_at": _INSTANT,
        "load_id": _TEXT,
    }
)


@dataclass
class Counts:
    """Rows of one table in one load. read = accepted + quarantined + deduplicated."""

    read: int = 0
    accepted: int = 0
    quarantined: int = 0
    deduplicated: int = 0
    """Came twice, or were in the lake already."""

    @property
    def moved(self) -> int:
        return self.accepted + self.quarantined


@dataclass(frozen=True)
class TableLoad:
    """How the load of one table went."""

    system: str
    table: str
    """Name in the lake's schema `raw_<system>`; children of nested rows have their own."""
    status: Status
    counts: Counts
    started_at: datetime
    """UTC without zone, as all instants in the lake."""
    finished_at: datetime
    error: str | None = None
    """What went wrong, where, and what to do. Without secrets."""
    notes: tuple[str, ...] = field(default=())
    """What is worth telling: new drift, what was done beside adding rows, what the source says."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Types by name, in YAML's words; empty if nothing was read."""
    delivered: Mapping[str, str] = field(default_factory=dict)
    """The source's columns in its order and spelling, by name in the lake."""
    changes: tuple[Change, ...] = field(default=())
    """Drift that is new: noted, and to be told."""

    @property
    def seconds(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class LoadedFile:
    """A file as it was when it was loaded."""

    path: str
    fingerprint: str
    bytes: int
    modified_at: datetime
    load_id: str


def record(
    desk: Desk, load_id: str, tables: Sequence[TableLoad], due_at: datetime | None = None
) -> None:
    """Append the loads that moved rows or failed, and checks that found nothing now and then: the
    first since the system was due, so that what is late can be told."""
    since = now() - CHECK_AGAIN
    if due_at is not None:
        since = max(since, min(due_at, now() - _SHORTEST))
    with _ONE_AT_A_TIME:
        recent = _checked_lately(desk, since)
        rows = [
            _load_row(load_id, table)
            for table in tables
            if table.status != "unchanged" or (table.system, table.table) not in recent
        ]
        if rows:
            recorded = pa.Table.from_pylist(rows, _LOADS)
            write(desk.lake, LOADS, recorded, mode="append", evolve=True)
            _tidy(desk.lake)


def _tidy(lake: Lake) -> None:
    """Keep the history quick to read where nobody runs upkeep: each load adds a file."""
    table = lake.table(LOADS)
    if table is not None and len(table.file_uris()) > _MOST_FILES and not lake.is_rehearsal:
        try:
            rewritten(lake, LOADS, datetime.now(UTC))
        except FAILURES as failure:
            # The load itself went well.
            log.info("%s: not compacted: %s", LOADS, failure)


def remember(desk: Desk, system: str, table: str, files: Iterable[LoadedFile]) -> None:
    """Note files as loaded. Comes after their rows: a load killed between repeats them."""
    rows = [{"system": system, "table_name": table, **vars(file)} for file in files]
    with _ONE_AT_A_TIME:
        write(desk.lake, FILES, pa.Table.from_pylist(rows, _FILES), mode="append")


def remembered(desk: Desk, system: str, table: str) -> Mapping[str, LoadedFile]:
    """The files loaded into a table, by path, as they were last."""
    known = desk.lake.table(FILES)
    if known is None:
        return {}
    columns = "path, fingerprint, bytes, modified_at, load_id"
    sql = f"""
        select {columns} from ({select_from(known)})
        where system = ? and table_name = ? order by load_id
    """
    with desk.session() as connection:
        rows = connection.execute(sql, [system, table]).fetchall()
    return {row[0]: LoadedFile(*row) for row in rows}


def delivered(desk: Desk, system: str) -> Mapping[str, Mapping[str, str]]:
    """What the source of each table of a system delivered last, as in `TableLoad`."""
    known = desk.lake.table(LOADS)
    if known is None or "delivered" not in known.schema().to_arrow().names:
        return {}
    sql = f"""
        select table_name, arg_max(delivered, finished_at) from ({select_from(known)})
        where system = ? and delivered is not null group by all
    """
    with desk.session() as connection:
        rows = connection.execute(sql, [system]).fetchall()
    return {table: json.loads(text) for table, text in rows}


def _checked_lately(desk: Desk, since: datetime) -> set[tuple[str, str]]:
    """Tables whose last load is told of already. After a failure it matters that one succeeds."""
    known = desk.lake.table(LOADS)
    if known is None:
        return set()
    sql = f"""
        select system, table_name from ({select_from(known)})
        group by all having max(finished_at) > ? and arg_max(status, finished_at) <> 'failed'
    """
    with desk.session() as connection:
        return set(connection.execute(sql, [since]).fetchall())


def _load_row(load_id: str, table: TableLoad) -> dict[str, object]:
    return {
        "load_id": load_id,
        "system": table.system,
        "table_name": table.table,
        "status": table.status,
        "rows_read": table.counts.read,
        "rows_accepted": table.counts.accepted,
        "rows_quarantined": table.counts.quarantined,
        "rows_deduplicated": table.counts.deduplicated,
        "started_at": table.started_at,
        "finished_at": table.finished_at,
        "error": table.error,
        "delivered": json.dumps(table.delivered) if table.delivered else None,
    }
