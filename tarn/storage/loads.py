"""What the lake tells of loads: `tarn.loads` is their history, and beside it lie the changes that
stopped one (`tarn.drift`) and the rows that were not let in (`quarantine_<system>.<table>`)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from tarn.storage.duck import select_from, session
from tarn.storage.lake import Lake
from tarn.storage.streams import StreamStatus

LOADS = "tarn.loads"
DRIFT = "tarn.drift"
QUARANTINE = "quarantine_"
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
Name: TypeAlias = tuple[str, str]
"""System and table."""
State = Literal["failed", "late", "never", "ok"]
WORST_FIRST: tuple[State, ...] = ("failed", "late", "never", "ok")


@dataclass(frozen=True)
class History:
    """What became of the loads of one table. Times are UTC without zone."""

    tried_at: datetime
    """When the last attempt began."""
    has_failed: bool
    """The last attempt."""
    error: str | None
    """Of the last attempt."""
    succeeded_at: datetime | None
    """When the last load began that did not fail."""
    rows: int
    """That it added or changed."""
    seconds: float
    """That it took."""


@dataclass(frozen=True)
class TableStatus:
    """Where one table stands."""

    system: str
    table: str
    state: State
    history: History | None
    late_seconds: float = 0
    """Since it should have been loaded."""
    due_at: datetime | None = None
    """When it is to be loaded next; UTC without zone. None without schedule."""
    drift: int = 0
    """Changes of the source that stop its loads."""
    quarantined: int = 0
    """Rows that wait in quarantine, those of children included."""
    stream: StreamStatus | None = None
    """Of a table that a stream has written."""

    @property
    def error(self) -> str | None:
        """What is wrong, of one that failed."""
        if self.state != "failed":
            return None
        trouble = self.stream.trouble if self.stream else None
        return trouble or (self.history.error if self.history else None)


def histories(lake: Lake, before: datetime = datetime.max) -> dict[Name, History]:
    """Of every table that was ever loaded, or tried, by loads that began before a moment."""
    table = lake.table(LOADS)
    if table is None:
        return {}
    good = "filter (status <> 'failed')"
    sql = f"""
        select system, table_name,
            max(started_at),
            arg_max(status, (started_at, finished_at)) = 'failed',
            arg_max(coalesce(error, ''), (started_at, finished_at)),
            max(started_at) {good},
            coalesce(arg_max(rows_accepted, (started_at, finished_at)) {good}, 0),
            coalesce(arg_max(date_diff('millisecond', started_at, finished_at) / 1000,
                (started_at, finished_at)) {good}, 0)
        from ({select_from(table)}) where status <> 'replayed' and started_at < ? group by all
    """
    with session(lake) as connection:
        rows = connection.execute(sql, [before]).fetchall()
    return {
        (system, name): History(tried_at, has_failed, error or None, succeeded_at, accepted, took)
        for system, name, tried_at, has_failed, error, succeeded_at, accepted, took in rows
    }


def last_tries(lake: Lake) -> dict[str, datetime]:
    """When the last load of each system began, whatever became of it."""
    tries: dict[str, datetime] = {}
    for (system, _), history in histories(lake).items():
        tries[system] = max(history.tried_at, tries.get(system, history.tried_at))
    return tries


def open_drift(lake: Lake, known: Mapping[Name, History]) -> Counter[Name]:
    """Changes that stop loads, noticed since the last load that went well."""
    table = lake.table(DRIFT)
    if table is None:
        return Counter()
    sql = f"""
        select system, table_name, column_name, max(noticed_at) from ({select_from(table)})
        where verdict = 'blocked' group by all
    """
    with session(lake) as connection:
        rows = connection.execute(sql).fetchall()
    found: Counter[Name] = Counter()
    for system, name, _, noticed_at in rows:
        history = known.get((system, name))
        if not (history and history.succeeded_at and history.succeeded_at > noticed_at):
            found[system, name] += 1
    return found


def blocked_tables(lake: Lake) -> frozenset[str]:
    """`raw_<system>.<table>` of the tables that drift keeps from being loaded."""
    if lake.table(DRIFT) is None:
        return frozenset()
    blocked = open_drift(lake, histories(lake))
    return frozenset(f"raw_{system}.{table}" for system, table in blocked)


def quarantined(lake: Lake) -> Counter[Name]:
    """Rows in quarantine by table, as the logs count them."""
    found: Counter[Name] = Counter()
    for name in lake.names():
        schema, _, table = name.partition(".")
        if schema.startswith(QUARANTINE) and (opened := lake.table(name)):
            counts = pa.table(opened.get_add_actions())["num_records"]
            found[schema.removeprefix(QUARANTINE), table] = pc.sum(counts).as_py() or 0
    return found


def span(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    parts = []
    for size, unit in _UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count:.0f} {unit}")
    return " ".join(parts[:2])
