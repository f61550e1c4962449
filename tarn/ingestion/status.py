"""Where every declared table stands: loaded as scheduled, late, failed, or never loaded."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.stream import StreamSystem
from tarn.ingestion.ledger import ALL
from tarn.ingestion.timetable import Timetable
from tarn.storage.lake import Lake
from tarn.storage.loads import (
    WORST_FIRST,
    History,
    Name,
    State,
    TableStatus,
    histories,
    open_drift,
    quarantined,
)
from tarn.storage.streams import StreamState, is_running, state_of, stream_status

GRACE = timedelta(minutes=10)
"""After a table was due, beside twice the time its last load took, until it counts as late."""
_CHILD = "__"


def status(lake: Lake, systems: Sequence[Declared], at: datetime) -> list[TableStatus]:
    """All tables that are declared, the worst first."""
    known = histories(lake)
    drift, rejected = open_drift(lake, known), quarantined(lake)
    found = []
    for declared in systems:
        timetable = Timetable.of(declared)
        streaming = (
            state_of(lake, declared.name) if isinstance(declared.system, StreamSystem) else None
        )
        loaded = {table: known[name, table] for name, table in known if name == declared.name}
        for table in _tables(declared, loaded):
            name = (declared.name, table)
            history = known.get(name)
            if streaming and streaming.is_continuous:
                state, late = _state_of_stream(streaming, table, history, at)
            else:
                state, late = _state(history, timetable, at)
            found.append(
                TableStatus(
                    *name,
                    state,
                    history,
                    late.total_seconds(),
                    timetable.after(at) if timetable else None,
                    drift[name],
                    _with_children(rejected, name),
                    stream_status(streaming, table, at) if streaming else None,
                )
            )
    return sorted(found, key=lambda each: (WORST_FIRST.index(each.state), -each.late_seconds))


def _state(
    history: History | None, timetable: Timetable | None, at: datetime
) -> tuple[State, timedelta]:
    """How it stands, and how late it is."""
    succeeded_at = history.succeeded_at if history else None
    late = timedelta(0)
    if timetable and history and succeeded_at:
        grace = GRACE + timedelta(seconds=2 * history.seconds)
        if timetable.before(at - grace) > succeeded_at:
            late = at - timetable.after(succeeded_at)
    if history and history.has_failed:
        return "failed", late
    if succeeded_at is None:
        return "never", late
    return ("late" if late else "ok"), late


def _state_of_stream(
    stream: StreamState, table: str, history: History | None, at: datetime
) -> tuple[State, timedelta]:
    """The same for what is to run for ever."""
    has_failed = bool(history and history.has_failed and history.tried_at >= stream.started_at)
    if has_failed or (stream.trouble and is_running(stream, at)):
        return "failed", timedelta(0)
    if not is_running(stream, at):
        return "late", at - stream.written_at
    has_landed = history or any(each.last_commit_at for each in stream.of(table))
    return ("ok" if has_landed else "never"), timedelta(0)


def _tables(declared: Declared, loaded: Mapping[str, History]) -> list[str]:
    """Declared ones, and those that a pattern stood for; children are their parents' business."""
    names = list(declared.system.tables)
    if not getattr(declared.system, "include", ()):
        return names
    last = max((history.tried_at for history in loaded.values()), default=None)
    found = [name for name, each in loaded.items() if name != ALL or each.tried_at == last]
    names = sorted({*names, *found}) or [ALL]
    parents = tuple(f"{name}{_CHILD}" for name in names)
    return [name for name in names if not name.startswith(parents)]


def _with_children(rows: Mapping[Name, int], name: Name) -> int:
    system, table = name
    return sum(
        count
        for (other, each), count in rows.items()
        if other == system and (each == table or each.startswith(f"{table}{_CHILD}"))
    )
