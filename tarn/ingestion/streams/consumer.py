"""Streams land: messages are read while those before them are committed.

Each system has a thread that reads it, as its transport wants all calls from one; commits are made
in a pool, one at a time a table. What waits in memory is bounded: beyond it nothing is read. All
that has not landed when a process ends, however it ends, is read again by the next.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from time import monotonic

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.stream import StreamTable, duration
from tarn.ingestion.drift import Change, DriftError, Verdict, record
from tarn.ingestion.engine import told
from tarn.ingestion.intake import Load
from tarn.ingestion.landed import Desk
from tarn.ingestion.ledger import Counts, TableLoad
from tarn.ingestion.ledger import record as record_loads
from tarn.ingestion.streams import Batch, LostMessagesError, Place, Position, Transport
from tarn.ingestion.streams.gauges import Gauges, Metrics
from tarn.ingestion.streams.goal import Goal
from tarn.ingestion.streams.landing import Committed, Landing
from tarn.ingestion.streams.tidying import Tidier
from tarn.ingestion.streams.transports import transport
from tarn.settings import Settings
from tarn.storage.clock import new_name, now
from tarn.storage.writer import OvertakenError

log = logging.getLogger(__name__)

COMMITTERS = 4
MOST_BYTES = 192 * 1024**2
"""Of messages of one system that wait or are being committed; beyond it nothing is read."""
AT_ONCE = 20_000
"""Messages asked for in one reading."""
TELL_SECONDS = 60.0
"""Between two entries of a table in `tarn.loads`."""
_READ_SECONDS = 0.1
_LAG_SECONDS = 2.0
_PATIENCE = 900.0
"""So long a lake that cannot be written is tried again, and a sixtieth of it by `--once`."""
_LONGEST_PAUSE = 15.0
_OVERTAKEN = 3
"""So often within `_PATIENCE` another process may have written first, until this one gives up."""
_PER_MESSAGE = 120
"""Bytes that a message takes beside its value."""


@dataclass(frozen=True)
class Wishes:
    """How streams are to be read."""

    once: bool = False
    """Stop when what waited at the start has landed."""
    accept_gap: bool = False
    """Go on after messages that the broker no longer has."""


@dataclass
class Tally:
    """What a table came to since it was told of last."""

    counts: Counts = field(default_factory=Counts)
    notes: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def add(self, done: Committed) -> None:
        for name, rows in vars(done.counts).items():
            setattr(self.counts, name, getattr(self.counts, name) + rows)
        self.changes += done.changes


@dataclass
class Progress:
    """How far a table is, for whoever watches."""

    rows: int = 0
    lag: int | None = None
    sent_at: int = 0
    """When the last message that was read had been sent; microseconds since 1970."""
    error: str | None = None
    """Why it stopped."""


@dataclass
class _Table:
    """One table while its stream runs."""

    landing: Landing
    every: float
    """Seconds."""
    most: int
    """Messages of one commit."""
    waiting: list[Batch] = field(default_factory=list)
    since: float = 0.0
    """When the first of them came."""
    rows: int = 0
    bytes: int = 0
    job: "Future[Committed | None] | None" = None
    job_bytes: int = 0
    failed_at: float | None = None
    """When its commits began to fail."""
    try_at: float = 0.0
    under_way: list[Batch] = field(default_factory=list)
    is_stopped: bool = False

    def add(self, batch: Batch, bytes_: int) -> None:
        if not self.waiting:
            self.since = monotonic()
        self.waiting.append(batch)
        self.rows += len(batch.values)
        self.bytes += bytes_

    def drop(self, partition: str | None = None) -> None:
        """Forget what waits: of a partition, or all."""
        self.waiting = [each for each in self.waiting if partition not in (None, each.partition)]
        self.rows = sum(len(each.values) for each in self.waiting)
        self.bytes = sum(map(_size, self.waiting))

    def take(self) -> list[Batch]:
        batches, self.waiting = self.waiting, []
        self.job_bytes, self.rows, self.bytes = self.bytes, 0, 0
        return batches

    def is_due(self, at: float, is_last: bool) -> bool:
        if self.job is not None or not self.waiting or at < self.try_at:
            return False
        return is_last or self.rows >= self.most or at >= self.since + self.every


class Stream:
    """One system's messages on their way into the lake."""

    def __init__(
        self,
        desk: Desk,
        declared: Declared,
        home: Settings,
        folder: Path,
        wishes: Wishes,
        tell: Callable[[str], None],
        metrics: Metrics | None = None,
    ) -> None:
        """`declared` has its variables resolved. Connects to nothing yet."""
        self.desk, self.declared, self.wishes, self.folder = desk, declared, wishes, folder
        self.tell = tell
        self.transport: Transport = transport(declared, home)
        self.pool = ThreadPoolExecutor(COMMITTERS, f"commit-{declared.name}")
        self.progress = {table: Progress() for table in declared.system.tables}
        self.tables = {table: self._table(table, home) for table in declared.system.tables}
        self.gauges = Gauges(desk.lake, declared.name, metrics, is_continuous=not wishes.once)
        self.tidier = Tidier(desk.lake)
        self.loaded: list[TableLoad] = []
        """All that was told of."""
        self._load = self._new_load()
        self._began = monotonic()
        self._tallies: dict[str, Tally] = defaultdict(Tally)
        self._trouble: str | None = None
        self._trouble_since = 0.0
        self._resumed: dict[Place, Position | None] = {}
        self._overtaken: list[float] = []
        self._lag_at = 0.0
        self._goal = Goal()

    def run(self, stop: Event) -> None:
        """Read until told to stop, or until what waited has landed. Raises TarnError for what
        concerns the whole system; what concerns a table stops that one."""
        try:
            if self.wishes.once:
                self.transport.check()
            self.transport.open(self._position)
            while not stop.is_set() and not self._is_done():
                self._step()
        finally:
            self._end()

    @property
    def failed(self) -> bool:
        return any(each.error for each in self.progress.values())

    def results(self) -> list[TableLoad]:
        """How each table went since the start."""
        return [self._result(table) for table in self.tables]

    def _result(self, table: str) -> TableLoad:
        parts = [each for each in self.loaded if each.table == table]
        if not parts:
            return TableLoad(self.declared.name, table, "unchanged", Counts(), self._load.at, now())
        counts = Counts(*map(sum, zip(*(vars(e.counts).values() for e in parts), strict=True)))
        failed = [each for each in parts if each.status == "failed"]
        return replace(
            (failed or parts)[-1],
            counts=counts,
            started_at=parts[0].started_at,
            notes=tuple(dict.fromkeys(note for each in parts for note in each.notes)),
            changes=tuple(change for each in parts for change in each.changes),
        )

    def _table(self, table: str, home: Settings) -> _Table:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, StreamTable)
        landing = Landing(self.desk, self.declared, table, self.transport, home)
        return _Table(landing, duration(spec.commit_every).total_seconds(), spec.commit_rows)

    def _new_load(self) -> Load:
        return Load(self.desk, new_name(), now(), self.folder, self.declared.name)

    def _step(self) -> None:
        if self._has_room:
            self._read()
        else:
            self._wait()
        self._commit()
        self._look_around()

    @property
    def _has_room(self) -> bool:
        return sum(each.bytes + each.job_bytes for each in self.tables.values()) < MOST_BYTES

    def _read(self) -> None:
        try:
            batches = self.transport.read(_READ_SECONDS, AT_ONCE)
        except LostMessagesError as lost:
            return self._lost(lost)
        for table, partition in self.transport.lost():
            self.tables[table].drop(partition)
            self.gauges.forget((table, partition))
            self._goal.forget((table, partition))
        for each in batches:
            self._came(each)

    def _came(self, batch: Batch) -> None:
        table, place = self.tables[batch.table], (batch.table, batch.partition)
        if table.is_stopped or not (batch.values or batch.position is not None):
            return
        table.add(batch, _size(batch))
        if not batch.values:
            return
        self._goal.came(place, batch)
        self.gauges.read(place, len(batch.values))
        self.gauges.event(place, batch.sent_at[-1])
        self.progress[batch.table].sent_at = batch.sent_at[-1]

    def _wait(self) -> None:
        """For a commit to end."""
        jobs = [each.job for each in self.tables.values() if each.job is not None]
        if jobs:
            wait(jobs, _READ_SECONDS, "FIRST_COMPLETED")
        else:
            Event().wait(_READ_SECONDS)

    def _commit(self, is_last: bool = False) -> None:
        """Begin the commits that are due, and see to those that have ended."""
        at = monotonic()
        is_last = is_last or not self._has_room or self.transport.is_full
        for name, table in self.tables.items():
            if table.job is not None and table.job.done():
                self._settle(name, table)
            if table.is_due(at, is_last):
                table.under_way = table.take()
                table.job = self.pool.submit(self._land, table, table.under_way, self._load)

    @staticmethod
    def _land(table: _Table, batches: Sequence[Batch], load: Load) -> Committed | None:
        began = monotonic()
        done = table.landing.land(batches, load)
        return done and replace(done, seconds=monotonic() - began)

    def _settle(self, name: str, table: _Table) -> None:
        """A commit has ended, well or not."""
        assert table.job is not None
        job, table.job = table.job, None
        batches, table.under_way, table.job_bytes = table.under_way, [], 0
        try:
            done = job.result()
        except OvertakenError as overtaken:
            self._begin_again(overtaken)
        except DriftError as error:
            record(self.desk, self._load.load_id, self.declared.name, name, error.changes)
            self._stop_table(name, error)
        except Exception as failure:
            self._put_off(name, table, batches, failure)
        else:
            table.failed_at = None
            if done is not None:
                self._committed(name, done)

    def _committed(self, name: str, done: Committed) -> None:
        self.transport.landed(done.batches)
        counts = done.counts
        self._tallies[name].add(done)
        self.progress[name].rows += counts.accepted
        self.gauges.committed(
            name, counts.accepted, counts.quarantined, counts.deduplicated, done.seconds
        )
        for change in done.changes:
            self.tell(f"{self.declared.name}.{name}: {change.told}")
        self.tidier.committed(self.tables[name].landing.name)

    def _put_off(self, name: str, table: _Table, batches: list[Batch], failure: Exception) -> None:
        """The lake could not be written: the same messages are tried again, with pauses."""
        log.debug("%s", name, exc_info=failure)
        at = monotonic()
        if table.failed_at is None:
            table.failed_at = at
            self.tell(f"{self._told(failure, name)}\n  trying again")
        if at - table.failed_at > self._patience:
            return self._stop_table(name, failure)
        table.try_at = at + min(_LONGEST_PAUSE, max(1.0, at - table.failed_at))
        table.waiting = [*batches, *table.waiting]
        table.rows = sum(len(each.values) for each in table.waiting)
        table.bytes = sum(map(_size, table.waiting))

    @property
    def _patience(self) -> float:
        return _PATIENCE / 60 if self.wishes.once else _PATIENCE

    def _stop_table(self, name: str, failure: Exception) -> None:
        """This table goes no further; its messages stay where they are, and the others go on."""
        table = self.tables[name]
        table.is_stopped = True
        table.drop()
        error = self._told(failure, name)
        self.progress[name].error = error
        self._goal.leave(name)
        self.tell(f"stopped: {error}")
        self.loaded.append(
            TableLoad(self.declared.name, name, "failed", Counts(), self._load.at, now(), error)
        )
        record_loads(self.desk, self._load.load_id, self.loaded[-1:])
        with suppress(TarnError):
            self.transport.leave(name)

    def _lost(self, lost: LostMessagesError) -> None:
        """There is a gap: it is accepted and noted, or its table stops."""
        if lost.place is None:
            raise lost
        table, _ = lost.place
        if self.tables[table].is_stopped:
            return
        accepted = self.wishes.accept_gap
        verdict: Verdict = "accepted" if accepted else "blocked"
        self._note(lost.place, lost.between, verdict, lost.what)
        if not accepted:
            return self._stop_table(table, lost)
        self.tell(f"accepted: {lost.what}")
        self._resumed[lost.place] = lost.resume
        self._reopen()

    def _note(
        self, place: Place, between: tuple[str | None, str | None], verdict: Verdict, what: str
    ) -> None:
        """Of a gap, where drift is told."""
        table, partition = place
        change = Change(partition, "lost", *between, verdict, what)
        record(self.desk, self._load.load_id, self.declared.name, table, [change])

    def _begin_again(self, overtaken: OvertakenError) -> None:
        """Another process has written: what waits here may be there already."""
        at = monotonic()
        self._overtaken = [each for each in self._overtaken if at - each < _PATIENCE] + [at]
        if len(self._overtaken) > _OVERTAKEN:
            raise TarnError(
                f"another process writes what this one reads: {overtaken.what}",
                f"{self.declared.name} ({self.declared.file.where('system')})",
                "stop one of them; nothing was written twice",
            )
        self.tell(f"{self.declared.name}: {overtaken.what}; reading on from there")
        self._reopen()

    def _reopen(self) -> None:
        """Read on from where the lake is."""
        self._await_jobs()
        for name, table in self.tables.items():
            if table.job is not None and table.job.exception() is None and table.job.result():
                self._settle(name, table)
            table.job, table.under_way, table.job_bytes = None, [], 0
            table.drop()
            table.landing.forget()
        self._goal = Goal()
        self.transport.close()
        self.transport.open(self._position)
        for name, table in self.tables.items():
            if table.is_stopped:
                self.transport.leave(name)

    def _position(self, place: Place) -> Position | None:
        """Where reading goes on. What waits of the partition is read again."""
        name, partition = place
        table = self.tables[name]
        if table.job is not None:
            wait([table.job])
        table.drop(partition)
        reached = table.landing.position(partition)
        if place in self._resumed:
            reached = self._resumed[place]
        self._goal.taken(place, reached)
        return reached

    def _await_jobs(self) -> None:
        wait([each.job for each in self.tables.values() if each.job is not None])

    def _look_around(self) -> None:
        at = monotonic()
        if at < self._lag_at:
            return
        self._lag_at = at + (_LAG_SECONDS if not self.wishes.once else _READ_SECONDS)
        self._tell_trouble(at)
        for place, what in self.transport.gaps():
            self.tell(f"{self.declared.name}.{place[0]}: {what}")
            self._note(place, (None, f"{now():%F %T}"), "accepted", what)
        lags = self.transport.lag()
        for place, lag in lags.items():
            self.gauges.lag(place, lag)
            self._goal.lag(place, lag)
        for name, progress in self.progress.items():
            known = [lag for (table, _), lag in lags.items() if table == name and lag is not None]
            progress.lag = sum(known) if known else None
        if at - self._began > TELL_SECONDS:
            self._record()

    def _tell_trouble(self, at: float) -> None:
        """Once, and once when it is over."""
        trouble = self.transport.trouble
        if trouble != self._trouble:
            self.tell(f"{self.declared.name}: {trouble or 'all is well again'}")
            self._trouble, self._trouble_since = trouble, at
        self.gauges.trouble(trouble or self._unwritten)
        if trouble and self.wishes.once and at - self._trouble_since > self._patience:
            raise TarnError(trouble, self.declared.file.where("connection"))

    @property
    def _unwritten(self) -> str | None:
        """What cannot be written just now."""
        names = [name for name, each in self.tables.items() if each.failed_at is not None]
        return f"{', '.join(names)}: cannot be written, trying again" if names else None

    def _record(self) -> None:
        """Tell `tarn.loads` what has landed under one load, and begin another."""
        self._await_jobs()
        self._commit_ended()
        tables = [
            TableLoad(
                self.declared.name,
                name,
                "loaded" if tally.counts.moved else "unchanged",
                tally.counts,
                self._load.at,
                now(),
                notes=tuple(change.told for change in tally.changes),
                columns=self.tables[name].landing.columns,
                delivered=self.tables[name].landing.delivered,
                changes=tuple(tally.changes),
            )
            for name, tally in self._tallies.items()
        ]
        record_loads(self.desk, self._load.load_id, tables)
        self.loaded += tables
        self._tallies.clear()
        self._load, self._began = self._new_load(), monotonic()

    def _commit_ended(self) -> None:
        for name, table in self.tables.items():
            if table.job is not None and table.job.done():
                self._settle(name, table)

    def _is_done(self) -> bool:
        if all(each.is_stopped for each in self.tables.values()):
            return True
        return self.wishes.once and self._goal.is_reached(monotonic())

    def _finish(self) -> None:
        """Commit all that was read. What cannot be written now, the next run reads again."""
        while left := {n: each for n, each in self.tables.items() if each.waiting or each.job}:
            self._commit(is_last=True)
            self._wait()
            if all(each.failed_at is not None and not each.job for each in left.values()):
                for name in left:
                    self.progress[name].error = f"{name}: what was read last is not written yet"
                break

    def _end(self) -> None:
        try:
            self._finish()
            self._record()
        finally:
            self.pool.shutdown()
            self.tidier.close()
            for table in self.tables.values():
                table.landing.close()
            self.gauges.close()
            self.transport.close()

    def _told(self, failure: Exception, table: str) -> str:
        return told(failure, self.declared, ("tables", table), self.transport.secrets)


def _size(batch: Batch) -> int:
    values = sum(len(value) for value in batch.values if value is not None)
    return values + len(batch.values) * _PER_MESSAGE
