"""What running streams leave in the lake for whoever asks how they stand: one small file a system.

It is a hint, written whole every few seconds: what is in the lake, and how far each partition has
been read, only the tables' own commits tell.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import obstore
from obstore.exceptions import NotFoundError
from pydantic import TypeAdapter, ValidationError

from tarn.storage.lake import OWN_SCHEMA, Lake

_FOLDER = f"{OWN_SCHEMA}/streams"
_STALE = timedelta(minutes=1)
"""A stream that runs has written its state since."""


@dataclass(frozen=True)
class PartitionState:
    """Where one partition of a stream stands. Times are UTC without zone."""

    table: str
    partition: str
    lag: int | None = None
    """Messages that wait at the broker; None where nobody can tell."""
    rate: float = 0
    """Messages read a second, of about the last minute."""
    last_event_at: datetime | None = None
    """When the last message that was read had been sent."""
    last_commit_at: datetime | None = None
    """When rows of the partition's table were last committed."""


@dataclass(frozen=True)
class StreamState:
    """Where the stream of one system stands."""

    system: str
    started_at: datetime
    written_at: datetime
    is_continuous: bool
    """It is to run for ever, and not until what waited has landed."""
    is_running: bool
    """It had not ended when this was written."""
    trouble: str | None = None
    """Why nothing comes just now."""
    partitions: Sequence[PartitionState] = ()

    def of(self, table: str) -> tuple[PartitionState, ...]:
        """The table's partitions, `orders-2` before `orders-10`."""
        found = (each for each in self.partitions if each.table == table)
        return tuple(sorted(found, key=lambda each: (len(each.partition), each.partition)))


@dataclass(frozen=True)
class StreamStatus:
    """Where the stream of one table stands, its partitions taken together."""

    is_running: bool
    lag: int | None
    """Messages that wait at the broker; None where nobody can tell."""
    rate: float
    """Messages read a second, of about the last minute."""
    last_event_at: datetime | None
    last_commit_at: datetime | None
    trouble: str | None
    """Why nothing comes just now."""
    partitions: Sequence[PartitionState]


_FORMAT = TypeAdapter(StreamState)


def state_of(lake: Lake, system: str) -> StreamState | None:
    """As its stream wrote it last; None if none ever did, or nobody can read it."""
    try:
        with lake.told():
            content = bytes(obstore.get(lake.objects, _path(system)).bytes())
        return _FORMAT.validate_json(content)
    except (NotFoundError, FileNotFoundError, ValidationError):
        return None


def keep(lake: Lake, state: StreamState) -> None:
    """Put it in place of the one before, whole; a dry run leaves it."""
    if lake.is_rehearsal:
        return
    with lake.told():
        obstore.put(lake.objects, _path(state.system), _FORMAT.dump_json(state))


def is_running(state: StreamState, at: datetime) -> bool:
    """Whether the stream was alive a moment before `at`, whatever it wrote last."""
    return state.is_running and state.written_at > at - _STALE


def stream_status(state: StreamState, table: str, at: datetime) -> StreamStatus:
    """Of a table, as a reader is told at a moment."""
    partitions, running = state.of(table), is_running(state, at)
    lags = [each.lag for each in partitions if each.lag is not None]
    return StreamStatus(
        running,
        sum(lags) if lags else None,
        sum(each.rate for each in partitions) if running else 0,
        _latest(each.last_event_at for each in partitions),
        _latest(each.last_commit_at for each in partitions),
        state.trouble if running else None,
        partitions,
    )


def _latest(times: Iterable[datetime | None]) -> datetime | None:
    return max((each for each in times if each), default=None)


def _path(system: str) -> str:
    return f"{_FOLDER}/{system}.json"
