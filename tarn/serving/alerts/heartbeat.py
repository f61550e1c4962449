"""Whether data comes at all, and whether it is of now: by commits of a raw table and its events."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.serving.alerts.declaration import Heartbeat
from tarn.storage.duck import quoted, select_from, session
from tarn.storage.lake import Lake
from tarn.storage.loads import span
from tarn.storage.streams import is_running, state_of
from tarn.storage.writer import UPKEEP
from tarn.strict_yaml import duration, nearest

_SENT_AT = "_sent_at"
_SKEW = "interval 1 minute"
"""How far a sender's clock may be ahead. An event of later is none of now."""


@dataclass(frozen=True)
class Pulse:
    """What is wrong with the data, in words; None where nothing is."""

    no_data: str | None = None
    late_data: str | None = None


def pulse(lake: Lake, heartbeat: Heartbeat, at: datetime, since: datetime | None) -> Pulse:
    """How it stands at a moment. `since`: silence before it is of no account."""
    table = lake.table(f"raw_{heartbeat.source}")
    if table is None:
        return Pulse(
            no_data=f"{heartbeat.source} has never been loaded{_pipe(lake, heartbeat, at)}"
        )
    committed = _last_rows_at(table)
    quiet = at - max(each for each in (committed, since, datetime.min) if each)
    if quiet >= duration(heartbeat.silent_after):
        last = f"since {committed:%Y-%m-%d %H:%M:%S} UTC" if committed else "yet"
        what = f"nothing of {heartbeat.source} has been committed {last}"
        return Pulse(no_data=what + _pipe(lake, heartbeat, at))
    return Pulse(late_data=_lateness(lake, table, heartbeat, committed))


def _last_rows_at(table: DeltaTable) -> datetime | None:
    """When a commit last brought rows; None if none did. Upkeep brings none."""
    return next(_times(table, 5), None) or next(_times(table, None), None)


def _times(table: DeltaTable, most: int | None) -> Iterator[datetime]:
    for entry in table.history(most):
        metrics = entry.get("operationMetrics") or {}
        if UPKEEP not in entry and int(metrics.get("num_added_rows", 0)):
            yield datetime.fromtimestamp(entry["timestamp"] / 1000, UTC).replace(tzinfo=None)


def _pipe(lake: Lake, heartbeat: Heartbeat, at: datetime) -> str:
    """What the stream itself says, so that a broken pipe is not taken for a silent source."""
    state = state_of(lake, heartbeat.source.partition(".")[0])
    if state is None:
        return ""
    if state.trouble:
        return f"; the stream says: {state.trouble}"
    if is_running(state, at):
        return "; the stream runs and sees no trouble, so the source is silent"
    return f"; the stream has not run since {state.written_at:%Y-%m-%d %H:%M:%S} UTC"


def _lateness(
    lake: Lake, table: DeltaTable, heartbeat: Heartbeat, at: datetime | None
) -> str | None:
    """How old what came at the last commit was: a pause since then is no lateness."""
    if heartbeat.event_time is None or heartbeat.late_after is None or at is None:
        return None
    names = [field.name for field in table.schema().fields]
    if heartbeat.event_time not in names:
        meant = nearest(heartbeat.event_time, names)
        raise TarnError(f"no column {heartbeat.event_time!r}{meant}", f"raw_{heartbeat.source}")
    event = quoted(heartbeat.event_time)
    latest = f"least($at, {_SENT_AT})" if _SENT_AT in names else "$at"
    sql = f"select max({event}) from ({select_from(table)}) where {event} <= {latest} + {_SKEW}"
    recent = at - duration(heartbeat.late_after)
    with session(lake) as connection:
        # Almost always a recent event is there, and files of old ones need not be read.
        fresh = connection.execute(f"{sql} and {event} > $recent", {"at": at, "recent": recent})
        if fresh.fetchall()[0][0] is not None:
            return None
        newest = connection.execute(sql, {"at": at}).fetchall()[0][0]
    if newest is None:
        return f"rows of {heartbeat.source} come in, but none says when it happened"
    behind = span((at - newest) // timedelta(seconds=1))
    return (
        f"rows of {heartbeat.source} come in, but the newest event is of"
        f" {newest:%Y-%m-%d %H:%M:%S} UTC, {behind} behind"
    )
