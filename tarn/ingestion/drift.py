"""What sources changed without notice: one row of `tarn.drift` for each change, when it is first
seen. A change that blocks its table is open until a later load of that table succeeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Literal, TypeAlias

import pyarrow as pa

from tarn.errors import TarnError
from tarn.ingestion.landed import Desk
from tarn.storage.clock import now
from tarn.storage.duck import select_from, session
from tarn.storage.lake import Lake
from tarn.storage.loads import DRIFT, histories
from tarn.storage.writer import write

_ONE_AT_A_TIME = Lock()

Kind: TypeAlias = Literal[
    "added", "dropped", "renamed", "retyped", "nulled", "reordered", "recased", "shrunk", "lost"
]
Verdict: TypeAlias = Literal["accepted", "widened", "discarded", "blocked"]
_TEXT = pa.string()
_SCHEMA = pa.schema(
    {
        "load_id": _TEXT,
        "system": _TEXT,
        "table_name": _TEXT,
        "column_name": _TEXT,
        "change": _TEXT,
        "before": _TEXT,
        "after": _TEXT,
        "verdict": _TEXT,
        "noticed_at": pa.timestamp("us"),
    }
)


@dataclass(frozen=True)
class Change:
    """One thing about a table that is no longer as it was."""

    column: str | None
    """Name in the lake; None where the whole table is concerned."""
    kind: Kind
    before: str | None
    """Type, name, order or number of rows, by kind."""
    after: str | None
    verdict: Verdict
    told: str
    """In words."""

    @property
    def _mark(self) -> tuple[str | None, ...]:
        return self.kind, self.before, self.after, self.verdict


@dataclass(frozen=True)
class Noticed:
    """A row of `tarn.drift`."""

    load_id: str
    system: str
    table: str
    column: str | None
    change: Kind
    before: str | None
    after: str | None
    verdict: Verdict
    noticed_at: datetime
    """UTC without zone."""

    @property
    def _mark(self) -> tuple[str | None, ...]:
        return self.change, self.before, self.after, self.verdict


class DriftError(TarnError):
    """Changes that a contract does not let in; nothing was written."""

    def __init__(self, what: str, where: str, fix: str, changes: Sequence[Change]) -> None:
        super().__init__(what, where, fix)
        self.changes = tuple(changes)
        self.is_noted = False


def record(
    desk: Desk, load_id: str, system: str, table: str, changes: Iterable[Change]
) -> list[Change]:
    """Note the changes that are new, and say which. One that lasts is noted once; one that had
    ended, because its column came back or a load succeeded, is noted again."""
    wanted = list(changes)
    if not wanted:
        return []
    with _ONE_AT_A_TIME:
        known = {
            (each.column, *each._mark) for each in _lasting(noticed(desk.lake, system, table), desk)
        }
        fresh = [each for each in wanted if (each.column, *each._mark) not in known]
        rows = [_row(each, load_id, system, table) for each in fresh]
        if rows:
            write(
                desk.lake,
                DRIFT,
                pa.Table.from_pylist(rows, _SCHEMA),
                mode="append",
                evolve=True,
                properties={"tarn.load_id": load_id, "tarn.system": system},
            )
    return fresh


def noticed(lake: Lake, system: str | None = None, table: str | None = None) -> list[Noticed]:
    """The rows of `tarn.drift`, oldest first: all, of a system, or of one of its tables."""
    found = lake.table(DRIFT)
    if found is None:
        return []
    columns = ", ".join(_SCHEMA.names)
    sql = f"""
        select {columns} from ({select_from(found)})
        where coalesce(system = $system, true) and coalesce(table_name = $table, true)
        order by noticed_at, load_id
    """
    with session(lake) as connection:
        rows = connection.execute(sql, {"system": system, "table": table}).fetchall()
    return [Noticed(*row) for row in rows]


def open_blocks(lake: Lake) -> list[Noticed]:
    """Changes that keep a table from being loaded still, oldest first."""
    blocked = [each for each in noticed(lake) if each.verdict == "blocked"]
    mended = _last_successes(lake) if blocked else {}
    return [each for each in blocked if _is_open(each, mended)]


def dropped_before(rows: Sequence[Noticed]) -> set[str]:
    """Of one table's drift: the columns that were let go and have not come back."""
    last = {each.column: each for each in rows if each.verdict != "blocked"}
    return {name for name, each in last.items() if name and each.change == "dropped"}


def _lasting(rows: Sequence[Noticed], desk: Desk) -> list[Noticed]:
    """Of each column and kind of change the last, but for blocks that have ended."""
    last = {(each.column, each.change): each for each in rows}
    ended = {each.column: each for each in rows if each.change == "added"}
    mended = _last_successes(desk.lake) if any(r.verdict == "blocked" for r in rows) else {}
    return [
        each
        for each in last.values()
        if (each.verdict != "blocked" or _is_open(each, mended))
        and not (each.change == "dropped" and _is_later(ended.get(each.column), each))
    ]


def _is_later(one: Noticed | None, other: Noticed) -> bool:
    return one is not None and one.noticed_at > other.noticed_at


def _is_open(block: Noticed, mended: dict[tuple[str, str], datetime]) -> bool:
    return mended.get((block.system, block.table), datetime.min) < block.noticed_at


def _last_successes(lake: Lake) -> dict[tuple[str, str], datetime]:
    """When the last good load of each table began, by system and table."""
    known = histories(lake).items()
    return {name: history.succeeded_at for name, history in known if history.succeeded_at}


def _row(change: Change, load_id: str, system: str, table: str) -> dict[str, object]:
    return {
        "load_id": load_id,
        "system": system,
        "table_name": table,
        "column_name": change.column,
        "change": change.kind,
        "before": change.before,
        "after": change.after,
        "verdict": change.verdict,
        "noticed_at": now(),
    }
