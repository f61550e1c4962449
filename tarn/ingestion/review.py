"""What people do with quarantined rows: look at them, put them through again, let them go."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console

from tarn.errors import TarnError
from tarn.ingestion import engine
from tarn.ingestion.declarations import FOLDER, Declared, declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.intake import Load
from tarn.ingestion.landed import Desk
from tarn.ingestion.quarantine import KIND, matching, remove, rows_of, take_in_left
from tarn.ingestion.replay import Replayed, finish_left, replay
from tarn.ingestion.workspace import alone, workspace
from tarn.progress import progress
from tarn.settings import settings
from tarn.storage.clock import new_name, now
from tarn.storage.duck import session
from tarn.storage.lake import Lake
from tarn.strict_yaml import nearest

_SCHEMA = "quarantine_"


@dataclass(frozen=True)
class Group:
    """The rows of one table that are kept for one reason."""

    table: str
    """`system.table`."""
    reason: str
    """Without the values."""
    rows: int
    first_seen: datetime
    last_seen: datetime
    place: str | None
    """Of one of them."""


@dataclass(frozen=True)
class Kept:
    """A row."""

    reason: str
    place: str | None
    first_seen: datetime
    last_seen: datetime
    row: str
    """JSON."""


def groups(lake: Lake, wanted: str | None = None) -> list[Group]:
    """All that is kept, by table and reason; of `system` or `system.table` if given."""
    columns = f"""
        {KIND}, count(*), min(coalesce(_first_seen, _loaded_at)),
        max(coalesce(_last_seen, _loaded_at)), min(_place)
    """
    return [
        Group(name, *row)
        for name in _names(lake, wanted)
        for row in _ask(lake, name, columns, "true group by all order by 2 desc, 1")
    ]


def rows(lake: Lake, table: str, reason: str = "", limit: int = 20) -> list[Kept]:
    """Rows of one table, those seen last first; reason is a part of theirs."""
    columns = """
        _reason, _place, coalesce(_first_seen, _loaded_at) as first,
        coalesce(_last_seen, _loaded_at) as last, _row
    """
    (name,) = _one(lake, table)
    found = _ask(lake, name, columns, f"{matching(reason)} order by last desc, _id limit {limit}")
    return [Kept(*row) for row in found]


def count(lake: Lake, wanted: str, reason: str = "") -> int:
    """How many rows would be meant."""
    return sum(
        int(row[0])
        for name in _one(lake, wanted)
        for row in _ask(lake, name, "count(*)", matching(reason))
    )


def discard(lake: Lake, wanted: str, reason: str = "") -> int:
    """Forget rows for good; how many they were."""
    home, gone = settings(), 0
    home.work_dir.mkdir(parents=True, exist_ok=True)
    with workspace(home.work_dir) as folder, closing(Desk(lake, folder)) as desk:
        for name in _one(lake, wanted):
            with alone(home.work_dir, name.partition(".")[0]):
                ids = [str(row[0]) for row in _ask(lake, name, "_id", matching(reason))]
                remove(desk, f"raw_{name}", ids)
                gone += len(ids)
    return gone


def replay_all(wanted: str, reason: str = "") -> list[Replayed]:
    """Put the rows of `system` or `system.table` through their contracts as these are now."""
    home = settings()
    lake, system = Lake.open(home), wanted.partition(".")[0]
    names = _one(lake, wanted)
    (one,) = declared(home.project_dir / FOLDER, [system])
    engine.quiet_dlt()
    with (
        progress(Console(quiet=True)) as quiet,
        workspace(home.work_dir) as folder,
        closing(Desk(lake, folder)) as desk,
        alone(home.work_dir, system),
    ):
        one = one.resolved(home)
        tables = engine.source_class(one.system.kind)(one, home).tables
        found: list[Replayed] = []
        for name in names:
            # One number each: it marks the commit of one table's rows.
            load = Load(desk, new_name(), now(), folder / name, system, notes_drift=False)
            take_in_left(desk, system, load.transaction)
            finish_left(desk, system)
            table = name.partition(".")[2]
            _check_declared(table, tables, one)
            spec, task = tables.get(table), quiet.task(name)
            found += replay(load, one, table, spec, matching(reason), task)
    return found


def told(replayed: Replayed) -> str:
    """One table in a few words."""
    counts = replayed.counts
    parts = [
        f"{counts.accepted:,} loaded",
        f"{counts.deduplicated:,} superseded" if counts.deduplicated else "",
        f"{replayed.stayed:,} stay",
    ]
    return f"{replayed.table}: {', '.join(part for part in parts if part)}"


def _check_declared(table: str, tables: Mapping[str, Table], one: Declared) -> None:
    root = table.partition("__")[0]
    if table not in tables and root not in tables:
        where, fix = one.file.where("tables"), "declare it, or discard its rows"
        raise TarnError(f"table {table} is declared no more", where, fix)


def _one(lake: Lake, wanted: str) -> list[str]:
    names = _names(lake, wanted)
    if not names:
        known = [name.removeprefix(_SCHEMA) for name in lake.names() if name.startswith(_SCHEMA)]
        raise TarnError(f"nothing of {wanted!r} is in quarantine{nearest(wanted, known)}")
    return names


def _names(lake: Lake, wanted: str | None) -> list[str]:
    """`system.table` of the quarantines meant, parents before their children."""
    names = [name.removeprefix(_SCHEMA) for name in lake.names() if name.startswith(_SCHEMA)]
    return [name for name in names if wanted in (None, name, name.partition(".")[0])]


def _ask(lake: Lake, name: str, columns: str, where: str) -> Sequence[tuple[Any, ...]]:
    table = lake.table(f"{_SCHEMA}{name}")
    assert table is not None
    with session(lake) as connection:
        sql = f"select {columns} from {rows_of(table)} where {where}"
        found: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return found
