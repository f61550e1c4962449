"""What is known of a Kinesis stream: its shards, who came from whom, how far each has been read.

Kinesis tells nobody that messages are gone: an old sequence number silently stands for the oldest
message there is. So a position also says up to when everything has been read. If that is longer ago
than the stream keeps messages, some may have come and gone since.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tarn.ingestion.streams import LostMessagesError, Position

_SEEN_BITS = 48
_HOUR_MS = 3_600_000
_SKEW_MS = 10_000
"""How far the clocks of Kinesis' machines may lie apart."""


@dataclass(frozen=True)
class Mark:
    """How far a shard has been read."""

    sequence: int = 0
    """Sequence number of the last record; 0 before the first."""
    seen_ms: int = 0
    """All that came until then has been read. Milliseconds since 1970 by Kinesis' clock."""
    is_finished: bool = False
    """The shard is closed, and read to its end."""

    @property
    def position(self) -> Position:
        """As one number that only grows."""
        return ((self.sequence << _SEEN_BITS | self.seen_ms) << 1) | self.is_finished

    @classmethod
    def of(cls, position: Position) -> "Mark":
        rest = position >> 1
        return cls(rest >> _SEEN_BITS, rest & ((1 << _SEEN_BITS) - 1), bool(position & 1))

    @property
    def iterator(self) -> dict[str, Any]:
        """The arguments by which Kinesis goes on from here."""
        if self.sequence:
            after = str(self.sequence)
            return {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": after}
        if self.seen_ms:
            return {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": self.seen_ms / 1000}
        return {"ShardIteratorType": "TRIM_HORIZON"}


@dataclass(frozen=True)
class Answer:
    """What one GetRecords gave."""

    values: Sequence[bytes]
    offsets: Sequence[str]
    sent_at: Sequence[int]
    keys: Sequence[bytes]
    sequence: int | None
    """Of the last record."""
    iterator: str | None
    """None at the end of a closed shard."""
    behind_ms: int
    now_ms: int
    """By Kinesis' clock."""


@dataclass
class Shard:
    """One shard while it is read."""

    name: str
    parents: tuple[str, ...]
    mark: Mark
    told: Mark
    """What the lake knows, or will with what has been handed over."""
    iterator: str | None = None
    due: float = 0.0
    """When it may be asked again, by the monotonic clock."""
    failures: int = 0
    is_at_tip: bool = False
    """The last answer was all there is."""
    reading: "Future[Answer] | None" = field(default=None, repr=False)


@dataclass(frozen=True)
class Listing:
    """A stream as Kinesis describes it."""

    created_ms: int
    retention_ms: int
    now_ms: int
    shards: Sequence[Mapping[str, Any]]


class Shards:
    """The shards of one stream. Those of a split or merged shard follow when it is read."""

    def __init__(
        self,
        table: str,
        stream: str,
        where: str,
        start: str,
        known: Callable[[str], Position | None],
    ) -> None:
        self.table, self.stream, self.where, self.start = table, stream, where, start
        self._known = known
        self.created_ms = self.retention_ms = 0
        self.by_name: dict[str, Shard] = {}
        self._childless: set[str] = set()
        self.is_listed = False

    @property
    def is_growing(self) -> bool:
        """A shard has ended, and those that follow it are not listed yet."""
        return bool(self._childless)

    def lags(self) -> Mapping[str, int | None]:
        """0 of a shard that has been read to its tip; of others Kinesis tells no number."""
        return {name: 0 if self._is_read(shard) else None for name, shard in self.by_name.items()}

    def _is_read(self, shard: Shard) -> bool:
        if shard.mark.is_finished:
            return shard.name not in self._childless
        return shard.is_at_tip and not (shard.reading and shard.reading.done())

    def update(self, listing: Listing) -> None:
        """Take on new shards. Raises LostMessagesError if messages have gone with old ones."""
        self.created_ms, self.retention_ms = listing.created_ms, listing.retention_ms
        described = {str(each["ShardId"]): each for each in listing.shards}
        new = {name: each for name, each in described.items() if name not in self.by_name}
        marks = self._marks(new, listing)
        for name, each in new.items():
            known = self._mark(name)
            mark = marks[name]
            self.by_name[name] = Shard(name, _parents(each), mark, known or Mark())
        for shard in self.by_name.values():
            self._check_same_stream(shard)
        for name in self.by_name.keys() - described.keys():
            shard = self.by_name[name]
            if not shard.mark.is_finished:
                raise self._gone(name, shard.mark, listing.now_ms)
            del self.by_name[name]
        with_children = {parent for each in self.by_name.values() for parent in each.parents}
        finished = {name for name, each in self.by_name.items() if each.mark.is_finished}
        self._childless = finished - with_children
        self.is_listed = True

    def readable(self) -> Iterator[Shard]:
        """Those with something to read, now or later."""
        for shard in self.by_name.values():
            parents = [self.by_name[name] for name in shard.parents if name in self.by_name]
            if not shard.mark.is_finished and all(each.mark.is_finished for each in parents):
                yield shard

    def take(self, shard: Shard, answer: Answer) -> None:
        """Go on behind an answer. Raises LostMessagesError if messages were gone before it."""
        self._check_kept(shard.mark, shard.name, answer.now_ms)
        until = max(answer.now_ms - answer.behind_ms - _SKEW_MS, self.created_ms)
        is_finished = answer.iterator is None
        shard.mark = Mark(
            answer.sequence or shard.mark.sequence,
            # When the shard was closed is not known, and so not how far its children have been.
            shard.mark.seen_ms if is_finished else max(shard.mark.seen_ms, until),
            is_finished,
        )
        shard.iterator, shard.is_at_tip = answer.iterator, answer.behind_ms == 0
        if is_finished:
            self._childless.add(shard.name)
            for child in self.by_name.values():
                if shard.name in child.parents and child.mark == Mark():
                    child.mark = self._first(child.parents)

    def is_to_tell(self, shard: Shard) -> bool:
        """Whether the lake should know of progress without messages: the end of a shard, where it
        begins, and now and then that nothing came, or it would look as if Tarn had been away."""
        if shard.mark.is_finished != shard.told.is_finished:
            return True
        return shard.mark.seen_ms - shard.told.seen_ms > self.retention_ms // 4

    def _marks(self, new: Mapping[str, Mapping[str, Any]], listing: Listing) -> dict[str, Mark]:
        """Where the reading of new shards begins."""
        known = {name: self._mark(name) for name in new}
        parents = {parent for each in new.values() for parent in _parents(each)}
        gone = {name: self._mark(name) for name in parents - known.keys() - self.by_name.keys()}
        if unread := [name for name, mark in gone.items() if mark and not mark.is_finished]:
            raise self._gone(unread[0], gone[unread[0]], listing.now_ms)
        is_first = not self.by_name and not any((*known.values(), *gone.values()))
        if is_first and self.start == "latest":
            began = max(listing.now_ms, listing.created_ms)
            return {name: Mark(0, began, is_closed(each)) for name, each in new.items()}
        return {name: known[name] or self._first(_parents(each)) for name, each in new.items()}

    def _first(self, parents: Sequence[str]) -> Mark:
        """The beginning of a shard: what came before its parents ended was in them."""
        marks = [
            self.by_name[name].mark if name in self.by_name else self._mark(name)
            for name in parents
        ]
        if not marks or not all(mark and mark.is_finished for mark in marks):
            return Mark()
        return Mark(0, min(mark.seen_ms for mark in marks if mark))

    def _mark(self, name: str) -> Mark | None:
        position = self._known(name)
        return None if position is None else Mark.of(position)

    def _check_same_stream(self, shard: Shard) -> None:
        if shard.mark.seen_ms and shard.mark.seen_ms < self.created_ms:
            raise self._lost(shard.name, "the stream has been deleted and made anew", None)

    def _check_kept(self, mark: Mark, name: str, now_ms: int) -> None:
        gap_ms = now_ms - self.retention_ms - mark.seen_ms
        if mark.seen_ms and not mark.is_finished and gap_ms > 0:
            kept, away = self.retention_ms / _HOUR_MS, (now_ms - mark.seen_ms) / _HOUR_MS
            raise self._lost(
                name,
                f"was last read {away:,.1f} hours ago, and the stream keeps messages for"
                f" {kept:,.0f}: those of the hours between are gone, if there were any",
                Mark(mark.sequence, now_ms),
            )

    def _gone(self, name: str, mark: Mark | None, now_ms: int) -> LostMessagesError:
        """A shard is listed for as long as it has messages."""
        after = Mark(mark.sequence if mark else 0, now_ms, is_finished=True)
        return self._lost(name, "is gone, and was not read to its end", after)

    def _lost(self, name: str, what: str, after: Mark | None) -> LostMessagesError:
        return LostMessagesError(
            f"stream {self.stream}: {name}: {what}",
            self.where,
            "start with --accept-gap to go on behind it",
            place=(self.table, name),
            resume=after.position if after else None,
        )


def _parents(described: Mapping[str, Any]) -> tuple[str, ...]:
    named = (described.get("ParentShardId"), described.get("AdjacentParentShardId"))
    return tuple(str(name) for name in named if name)


def is_closed(described: Mapping[str, Any]) -> bool:
    return "EndingSequenceNumber" in described["SequenceNumberRange"]
