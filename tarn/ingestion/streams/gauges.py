"""How streams are watched: Prometheus asks for their metrics, `tarn status` reads their state.

One `Metrics` serves a process; each system's consumer tells its own `Gauges`, which must be told
something every second or so, if only that there is no trouble: that is the stream's heartbeat.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic

from obstore.exceptions import BaseError
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from tarn.errors import TarnError
from tarn.ingestion.streams import Place
from tarn.storage.clock import now
from tarn.storage.lake import Lake
from tarn.storage.streams import PartitionState, StreamState, keep, state_of

log = logging.getLogger(__name__)

_EVERY = 5.0
"""Seconds between two writings of the state."""
_SAMPLES = 12
"""Of the rate: about a minute."""
_TABLE = ("system", "table")
_PLACE = (*_TABLE, "partition")
_COMMIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FAILURES = (TarnError, BaseError, OSError)
_EPOCH = datetime(1970, 1, 1)


class Metrics:
    """The metrics of all streams of a process, under Prometheus's names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.read = self._counter("messages_read", "Messages taken from the broker.", _PLACE)
        self.committed = self._counter("rows_committed", "Rows added to the table.", _TABLE)
        self.quarantined = self._counter(
            "rows_quarantined", "Messages and rows that went to quarantine.", _TABLE
        )
        self.deduplicated = self._counter(
            "rows_deduplicated", "Rows left out, as they were there already.", _TABLE
        )
        self.seconds = Histogram(
            "tarn_stream_commit_seconds",
            "Time that a commit took, from decoding to the answer of the lake.",
            _TABLE,
            buckets=_COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.lag = self._gauge("lag_messages", "Messages that wait at the broker.", _PLACE)
        self.event = self._gauge(
            "last_event_timestamp_seconds", "When the last message read had been sent.", _PLACE
        )
        self.commit = self._gauge(
            "last_commit_timestamp_seconds", "When rows were last committed.", _TABLE
        )
        self.up = self._gauge("up", "1 while the stream runs without trouble, else 0.", _TABLE[:1])

    def _counter(self, name: str, told: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"tarn_stream_{name}", told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"tarn_stream_{name}", told, labels, registry=self.registry)

    @contextmanager
    def served(self, port: int) -> Iterator[int]:
        """Answer on 127.0.0.1; the port, which is any free one for 0."""
        try:
            server, thread = start_http_server(port, "127.0.0.1", self.registry)
        except OSError as error:
            raise TarnError(
                f"metrics cannot be served: {error.strerror}",
                f"127.0.0.1:{port}",
                "choose another port",
            ) from None
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@dataclass
class _Partition:
    """What is known of one partition."""

    event_at: datetime | None = None
    lag: int | None = None
    messages: int = 0
    """Read since the start."""
    samples: deque[tuple[float, int]] = field(
        default_factory=lambda: deque([(monotonic(), 0)], _SAMPLES)
    )

    def rate(self, at: float) -> float:
        """Messages a second since the oldest sample; this call is the next one."""
        since, before = self.samples[0]
        self.samples.append((at, self.messages))
        return (self.messages - before) / max(at - since, 1.0)


class Gauges:
    """What the consumer of one system tells of itself. Nothing that fails here stops it."""

    def __init__(
        self, lake: Lake, system: str, metrics: Metrics | None = None, is_continuous: bool = True
    ) -> None:
        self.lake, self.system, self.is_continuous = lake, system, is_continuous
        self.metrics = metrics or Metrics()
        self.started_at = now()
        self._trouble: str | None = None
        self._due = monotonic()
        self._partitions: dict[Place, _Partition] = {}
        before = self._before()
        self._events = {(each.table, each.partition): each.last_event_at for each in before}
        self._commits = {each.table: each.last_commit_at for each in before}
        self.metrics.up.labels(system).set(1)

    def read(self, place: Place, messages: int) -> None:
        """So many have come."""
        self._partition(place).messages += messages
        self.metrics.read.labels(self.system, *place).inc(messages)
        self._beat()

    def committed(
        self, table: str, rows: int, quarantined: int, deduplicated: int, seconds: float
    ) -> None:
        """A commit of a table has gone well, and took so long."""
        labels, metrics = (self.system, table), self.metrics
        self._commits[table] = now()
        metrics.committed.labels(*labels).inc(rows)
        metrics.quarantined.labels(*labels).inc(quarantined)
        metrics.deduplicated.labels(*labels).inc(deduplicated)
        metrics.seconds.labels(*labels).observe(seconds)
        metrics.commit.labels(*labels).set_to_current_time()
        self._beat()

    def lag(self, place: Place, messages: int | None) -> None:
        """So many wait; None where nobody can tell."""
        self._partition(place).lag = messages
        self.metrics.lag.labels(self.system, *place).set(
            float("nan") if messages is None else messages
        )
        self._beat()

    def event(self, place: Place, sent_at: int) -> None:
        """The last message that was read had been sent then: microseconds since 1970."""
        partition = self._partition(place)
        sent = _EPOCH + timedelta(microseconds=sent_at)
        partition.event_at = max(sent, partition.event_at or sent)
        self.metrics.event.labels(self.system, *place).set(
            (partition.event_at - _EPOCH).total_seconds()
        )
        self._beat()

    def trouble(self, text: str | None) -> None:
        """Why nothing comes just now; None if all is well."""
        self._trouble = text
        self.metrics.up.labels(self.system).set(text is None)
        self._beat()

    def forget(self, place: Place) -> None:
        """The partition is another consumer's now."""
        if self._partitions.pop(place, None):
            self.metrics.lag.remove(self.system, *place)
            self.metrics.event.remove(self.system, *place)

    def close(self) -> None:
        """The stream has ended."""
        self.metrics.up.labels(self.system).set(0)
        self._keep(is_running=False)

    def _partition(self, place: Place) -> _Partition:
        if place not in self._partitions:
            self._partitions[place] = _Partition(self._events.get(place))
        return self._partitions[place]

    def _beat(self) -> None:
        if monotonic() >= self._due:
            self._keep(is_running=True)

    def _keep(self, is_running: bool) -> None:
        self._due = monotonic() + _EVERY
        try:
            keep(self.lake, self._state(is_running))
        except _FAILURES as failure:
            log.info("%s: the state of the stream is not kept: %s", self.system, failure)

    def _state(self, is_running: bool) -> StreamState:
        at = monotonic()
        return StreamState(
            system=self.system,
            started_at=self.started_at,
            written_at=now(),
            is_continuous=self.is_continuous,
            is_running=is_running,
            trouble=self._trouble,
            partitions=[
                PartitionState(
                    table=table,
                    partition=partition,
                    lag=known.lag,
                    rate=round(known.rate(at), 3) if is_running else 0,
                    last_event_at=known.event_at,
                    last_commit_at=self._commits.get(table),
                )
                for (table, partition), known in sorted(self._partitions.items())
            ],
        )

    def _before(self) -> Sequence[PartitionState]:
        """What the run before left: when the last event and commit were."""
        try:
            state = state_of(self.lake, self.system)
        except _FAILURES:
            return ()
        return state.partitions if state else ()
