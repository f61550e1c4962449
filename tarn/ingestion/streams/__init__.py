"""Streams: each kind is a `Transport` that hands over messages; one consumer lands them all.

A transport either keeps positions (Kafka, Kinesis) or has its messages acknowledged (Pub/Sub,
MQTT, webhooks). Positions live in the lake: those of the last commit are where reading goes on,
whatever the broker remembers. What is acknowledged comes again if the process is killed between
commit and acknowledgement, so its messages are told apart by what names them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.sources import Offered, unlisted

_SAMPLE_SECONDS = 5.0

Position: TypeAlias = int
"""How far a partition has been read: a natural number of any size that only grows. What it means
is the transport's own."""
Place: TypeAlias = tuple[str, str]
"""Table and partition."""


@dataclass(frozen=True)
class Batch:
    """Messages of one partition of one table's topic, in order. With a position there may be none:
    the lake is to know that there were none until there."""

    table: str
    partition: str
    """`orders-0`, a shard, a subscription; told to users, and kept as `_partition`."""
    values: Sequence[bytes | None]
    offsets: Sequence[int] | Sequence[str]
    """What names each message in its partition, kept as `_offset`: integers where the transport's
    `offset_type` says so, else text."""
    sent_at: Sequence[int]
    """Microseconds since 1970, by the broker's clock."""
    keys: Sequence[bytes | None] = ()
    """Of a broker that has them."""
    position: Position | None = None
    """Of the partition when these messages are in the lake; None of a transport that has its
    messages acknowledged."""
    receipts: Sequence[Any] = field(default=(), repr=False)
    """By which the transport acknowledges them."""


class LostMessagesError(TarnError):
    """The broker no longer has what comes next: retention was too short, or it was reset."""

    def __init__(
        self,
        what: str,
        where: str | None = None,
        fix: str | None = None,
        *,
        place: Place | None = None,
        resume: Position | None = None,
        between: tuple[str | None, str | None] = (None, None),
    ) -> None:
        """place: which partition; None stops the whole system. resume: where reading could go
        on, if the gap is accepted; None begins as if it had never been read. between: what lies
        at both ends of the gap, in the broker's words."""
        super().__init__(what, where, fix)
        self.place, self.resume, self.between = place, resume, between


class Transport(Protocol):
    """A connection that reads the topics of one system. Making one connects to nothing.

    All calls come from one thread. A broker that is away is no error: `read` gives nothing and
    connects again; `trouble` tells of it meanwhile.
    """

    declared: Declared
    secrets: frozenset[str]
    """Texts that no message may contain."""
    offset_type: pa.DataType
    """Of `_offset`: int64 or string."""
    keeps_positions: bool

    def open(self, position: Callable[[Place], Position | None]) -> None:
        """Begin. `position` tells how far a partition has been read, and is asked whenever one is
        taken on; None of one that never was."""

    def read(self, seconds: float, most: int) -> list[Batch]:
        """What comes within so many seconds, at most about so many messages; returns early with
        what there is. Raises LostMessagesError, or TarnError for what waiting does not mend."""

    def leave(self, table: str) -> None:
        """Read this table no more: it cannot be written to. What comes of it is dropped."""
        return None

    def landed(self, batches: Sequence[Batch]) -> None:
        """These are in the lake: acknowledge them, or let the broker know for its own tools."""

    def lost(self) -> Sequence[Place]:
        """Partitions taken away since the last call: what was read of them and has not landed is
        to be forgotten, as another consumer reads it again."""
        return ()

    def gaps(self) -> Sequence[tuple[Place, str]]:
        """What nobody can read any more, since the last call: it is told, and reading goes on."""
        return ()

    def lag(self) -> Mapping[Place, int | None]:
        """Messages that wait in each partition that is read; None where nobody can tell."""

    @property
    def is_full(self) -> bool:
        """Nothing more comes until what was read has landed: it is not to wait for its time."""
        return False

    @property
    def trouble(self) -> str | None:
        """Why nothing comes just now, if something is wrong."""
        return None

    def close(self) -> None:
        """Leave; messages that have not landed come again."""

    def sample(self, table: str, most: int) -> list[Batch]:
        """Some messages of a table that are there, of one that is only looked at: nothing of it
        lands. May be called without `open`."""
        batches: list[Batch] = []
        until = monotonic() + _SAMPLE_SECONDS
        self.open(lambda place: None)
        try:
            while sum(len(each.values) for each in batches) < most and monotonic() < until:
                batches += [each for each in self.read(0.2, most) if each.table == table]
        finally:
            self.close()
        return batches

    def check(self) -> list[str]:
        """What the system can and cannot do, a line each; raises TarnError if it is not there."""
        return []

    def offered(self) -> list[Offered]:
        """All topics that the system says it has."""
        raise unlisted(self.declared)
