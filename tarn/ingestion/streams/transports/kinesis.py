"""Kinesis: shards read side by side, each at the pace that Kinesis allows."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import pyarrow as pa

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.kinesis import KinesisSystem, KinesisTable
from tarn.ingestion.masking import masked, secrets_in
from tarn.ingestion.names import lake_names
from tarn.ingestion.sources import Offered
from tarn.ingestion.streams import Batch, LostMessagesError, Place, Position, Transport
from tarn.ingestion.streams.transports.aggregated import taken_apart
from tarn.ingestion.streams.transports.aws import (
    EXPIRED,
    NOT_THERE,
    STALE,
    code,
    kinesis_client,
    unmendable,
)
from tarn.ingestion.streams.transports.shards import Answer, Listing, Shard, Shards, is_closed
from tarn.settings import Settings

log = logging.getLogger(__name__)

SIDE_BY_SIDE = 6
"""Answers under way or waiting, of at most 10 MB each."""
_MOST = 10_000
"""Records that Kinesis gives at once."""
_PACE_SECONDS = 0.2
"""Kinesis answers five times a second for each shard, to all readers together."""
_IDLE_SECONDS = 0.5
_LIST_SECONDS = 30.0
_LIST_SOON_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 4.0
_SAMPLE_SECONDS = 10.0
_NONE: tuple[tuple[()], tuple[()], tuple[()], tuple[()]] = ((), (), (), ())
_LOST_PLACE = "InvalidArgumentException"


class Kinesis(Transport):
    """The streams of one account and region."""

    keeps_positions = True
    offset_type = pa.string()

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared, self.home = declared, home
        assert isinstance(declared.system, KinesisSystem)
        self.system = declared.system
        self.secrets = frozenset(secrets_in(self.system.connection.model_dump()))
        self._made: Any = None
        self._streams: dict[str, _Stream] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._troubles: dict[Place, str] = {}

    @property
    def _client(self) -> Any:
        if self._made is None:
            where = self._where("connection")
            connection, variables = self.system.connection, self.home.variables
            self._made = kinesis_client(connection, variables, self.declared.name, where)
        return self._made

    def open(self, position: Callable[[Place], Position | None]) -> None:
        self._pool = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="kinesis")
        self._troubles = {}
        self._streams = {
            table: _Stream(table, spec, self._where("tables", table, "stream"), position)
            for table, spec in self.system.tables.items()
        }

    def leave(self, table: str) -> None:
        self._streams.pop(table, None)
        self._troubles = {at: text for at, text in self._troubles.items() if at[0] != table}

    def read(self, seconds: float, most: int) -> list[Batch]:
        deadline = time.monotonic() + seconds
        while True:
            self._ask(most)
            batches = self._taken(most)
            left = deadline - time.monotonic()
            if batches or left <= 0:
                return batches
            self._wait(left)

    def landed(self, batches: Sequence[Batch]) -> None:
        """Kinesis keeps no record of who has read what."""

    def lag(self) -> Mapping[Place, int | None]:
        """0 of a shard that has been read to its tip; of others Kinesis tells no number. Nothing
        until all shards are known."""
        streams = self._streams.values()
        if not all(each.shards.is_listed for each in streams):
            return {}
        lags = [(each.table, each.shards.lags()) for each in streams]
        return {(table, name): lag for table, of in lags for name, lag in of.items()}

    @property
    def trouble(self) -> str | None:
        return next(iter(self._troubles.values()), None)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._streams = {}

    def check(self) -> list[str]:
        lines = []
        for table, spec in self.system.tables.items():
            where = self._where("tables", table, "stream")
            listing: Listing = self._asked(partial(self._listing, spec.stream), where)
            is_open = [each for each in listing.shards if not is_closed(each)]
            lines.append(
                f"{table}: stream {spec.stream} has {len(is_open)} open shards"
                f" ({len(listing.shards)} in all) and keeps messages for"
                f" {listing.retention_ms // 3_600_000} hours"
            )
        return lines

    def sample(self, table: str, most: int) -> list[Batch]:
        """Of the oldest that the stream has."""
        spec = self.system.tables[table].model_copy(update={"start": "earliest"})
        looking = Kinesis(self.declared, self.home)
        looking.open(lambda place: None)
        where = self._where("tables", table, "stream")
        looking._streams = {table: _Stream(table, spec, where, lambda place: None)}
        batches: list[Batch] = []
        until = time.monotonic() + _SAMPLE_SECONDS
        with closing(looking):
            while time.monotonic() < until and sum(len(each.values) for each in batches) < most:
                batches += [each for each in looking.read(0.2, most) if each.values]
                lags = looking.lag()
                if lags and not any(lag is None for lag in lags.values()):
                    break
        return batches

    def offered(self) -> list[Offered]:
        """All streams of the account and region."""
        names: list[str] = []
        while True:
            after = {"ExclusiveStartStreamName": names[-1]} if names else {}
            ask = partial(self._client.list_streams, **after)
            page = self._asked(ask, self._where("connection"))
            names += page["StreamNames"]
            if not page["HasMoreStreams"] or not page["StreamNames"]:
                break
        tables = lake_names(names)
        return [
            Offered(table, {"stream": name}, {}) for table, name in zip(tables, names, strict=True)
        ]

    def _listing(self, stream: str) -> Listing:
        return _listing(self._client, stream)

    def _where(self, *at: str) -> str:
        return f"{self.declared.name} ({self.declared.file.where(*at)})"

    def _ask(self, most: int) -> None:
        """Begin what is due, as many at a time as may be under way; who waited longest first."""
        assert self._pool is not None
        now = time.monotonic()
        for stream in self._streams.values():
            if stream.listing is None and stream.due <= now:
                stream.listing = self._pool.submit(_listing, self._client, stream.spec.stream)
        shards = [(stream, shard) for stream in self._streams.values() for shard in stream.waiting]
        free = SIDE_BY_SIDE - sum(each.under_way for each in self._streams.values())
        shards.sort(key=lambda each: each[1].due)
        for stream, shard in shards[: max(free, 0)]:
            if shard.due <= now:
                name, limit = stream.spec.stream, min(max(most, 1), _MOST)
                shard.due = now + _PACE_SECONDS
                shard.reading = self._pool.submit(_answer, self._client, name, shard, limit)

    def _wait(self, seconds: float) -> None:
        """Until something has come, or something is due."""
        futures = [each for stream in self._streams.values() for each in stream.futures]
        due = [at for stream in self._streams.values() for at in stream.dues]
        if len(futures) < SIDE_BY_SIDE and due:
            seconds = min(seconds, max(min(due) - time.monotonic(), 0.01))
        if futures:
            wait(futures, seconds, FIRST_COMPLETED)
        else:
            time.sleep(seconds)

    def _taken(self, most: int) -> list[Batch]:
        batches: list[Batch] = []
        rows = 0
        for stream in self._streams.values():
            self._take_listing(stream)
            for shard in list(stream.shards.by_name.values()):
                if rows >= most:
                    return batches
                batch = self._take(stream, shard)
                if batch is not None:
                    batches.append(batch)
                    rows += len(batch.values)
        return batches

    def _take_listing(self, stream: "_Stream") -> None:
        if stream.listing is None or not stream.listing.done():
            return
        future, stream.listing = stream.listing, None
        place = (stream.table, stream.spec.stream)
        stream.due = time.monotonic() + _LIST_SECONDS
        try:
            listing = future.result()
        except Exception as error:
            stream.failures += 1
            stream.due = time.monotonic() + _patience(stream.failures)
            self._failed(error, place, stream.where)
            return
        stream.failures = 0
        self._troubles.pop(place, None)
        stream.shards.update(listing)
        if stream.shards.is_growing:
            stream.due = time.monotonic() + _LIST_SOON_SECONDS

    def _take(self, stream: "_Stream", shard: Shard) -> Batch | None:
        """What a shard has given, or that the lake should know how far it is."""
        answer = self._answered(stream, shard)
        if answer is not None:
            stream.shards.take(shard, answer)
            if answer.iterator is None:
                stream.due = 0.0
        has_come = answer is not None and bool(answer.values)
        if not has_come and not stream.shards.is_to_tell(shard):
            return None
        shard.told = shard.mark
        given = (answer.values, answer.offsets, answer.sent_at, answer.keys) if answer else _NONE
        return Batch(stream.table, shard.name, *given, shard.mark.position)

    def _answered(self, stream: "_Stream", shard: Shard) -> Answer | None:
        if shard.reading is None or not shard.reading.done():
            return None
        future, shard.reading = shard.reading, None
        place = (stream.table, shard.name)
        try:
            answer = future.result()
        except Exception as error:
            self._unanswered(error, stream, shard)
            return None
        shard.failures = 0
        self._troubles.pop(place, None)
        if answer.behind_ms == 0:
            shard.due = max(shard.due, time.monotonic() + _IDLE_SECONDS)
        return answer

    def _unanswered(self, error: Exception, stream: "_Stream", shard: Shard) -> None:
        shard.failures += 1
        shard.iterator, shard.is_at_tip = None, False
        if code(error) == STALE and shard.failures == 1:
            return
        shard.due = time.monotonic() + _patience(shard.failures)
        if code(error) == NOT_THERE and shard.failures == 1:
            # The listing tells whether it is the shard that is gone, or the stream.
            stream.due = 0.0
            return
        if code(error) == _LOST_PLACE:
            raise LostMessagesError(
                f"stream {stream.spec.stream} does not know how far {shard.name} was read: {error}",
                stream.where,
                "start with --accept-gap to read it from its beginning",
                place=(stream.table, shard.name),
            ) from error
        self._failed(error, (stream.table, shard.name), stream.where)

    def _failed(self, error: Exception, place: Place, where: str) -> None:
        """Raises what waiting does not mend."""
        failure = unmendable(error, where)
        if failure is not None:
            raise failure from error
        if code(error) in EXPIRED:
            self._made = None
        log.debug("%s", place, exc_info=error)
        self._troubles[place] = masked(f"{place[1]}: {error}", self.secrets)

    def _asked(self, ask: Callable[[], Any], where: str) -> Any:
        """An answer at once, or a TarnError."""
        try:
            return ask()
        except Exception as error:
            if isinstance(error, TarnError):
                raise
            raise unmendable(error, where) or TarnError(
                f"Kinesis does not answer: {masked(str(error), self.secrets)}", where
            ) from error


class _Stream:
    """A table's stream while it is read."""

    def __init__(
        self,
        table: str,
        spec: KinesisTable,
        where: str,
        position: Callable[[Place], Position | None],
    ) -> None:
        self.table, self.spec, self.where = table, spec, where
        known = partial(_known, position, table)
        self.shards = Shards(table, spec.stream, where, spec.start, known)
        self.listing: Future[Listing] | None = None
        self.due = 0.0
        """When it is to be listed."""
        self.failures = 0

    @property
    def waiting(self) -> list[Shard]:
        return [shard for shard in self.shards.readable() if shard.reading is None]

    @property
    def under_way(self) -> int:
        return sum(shard.reading is not None for shard in self.shards.by_name.values())

    @property
    def futures(self) -> list["Future[Any]"]:
        reading = [shard.reading for shard in self.shards.by_name.values()]
        return [future for future in (self.listing, *reading) if future is not None]

    @property
    def dues(self) -> Iterable[float]:
        listing = [] if self.listing else [self.due]
        return [*listing, *(shard.due for shard in self.waiting)]


def _known(position: Callable[[Place], Position | None], table: str, shard: str) -> Position | None:
    return position((table, shard))


def _patience(failures: int) -> float:
    return min(0.25 * 2.0**failures, _LONGEST_WAIT_SECONDS)


def _listing(client: Any, stream: str) -> Listing:
    summary = client.describe_stream_summary(**_named(stream))
    described = summary["StreamDescriptionSummary"]
    pages = client.get_paginator("list_shards").paginate(**_named(stream))
    return Listing(
        int(described["StreamCreationTimestamp"].timestamp() * 1000),
        described["RetentionPeriodHours"] * 3_600_000,
        _now_ms(summary),
        [shard for page in pages for shard in page["Shards"]],
    )


def _answer(client: Any, stream: str, shard: Shard, limit: int) -> Answer:
    """The next records of a shard."""
    iterator = shard.iterator
    if iterator is None:
        named = {**_named(stream), "ShardId": shard.name}
        iterator = client.get_shard_iterator(**named, **shard.mark.iterator)["ShardIterator"]
    found = client.get_records(ShardIterator=iterator, Limit=limit)
    values: list[bytes] = []
    offsets: list[str] = []
    sent_at: list[int] = []
    keys: list[bytes] = []
    for record in found["Records"]:
        sequence, data = record["SequenceNumber"], record["Data"]
        parts = taken_apart(data)
        if parts is None:
            offsets.append(sequence)
            parts = [(record["PartitionKey"].encode(), data)]
        else:
            offsets += (f"{sequence}/{index}" for index in range(len(parts)))
        sent_at += [_micros(record["ApproximateArrivalTimestamp"])] * len(parts)
        keys += (key for key, _ in parts)
        values += (value for _, value in parts)
    last = int(found["Records"][-1]["SequenceNumber"]) if found["Records"] else None
    behind, after = found.get("MillisBehindLatest", 0), found.get("NextShardIterator")
    return Answer(values, offsets, sent_at, keys, last, after, behind, _now_ms(found))


def _named(stream: str) -> dict[str, str]:
    return {"StreamARN" if stream.startswith("arn:") else "StreamName": stream}


def _now_ms(answer: Mapping[str, Any]) -> int:
    """When Kinesis answered, to the second, by its own clock."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return int(parsedate_to_datetime(date).timestamp() * 1000 if date else time.time() * 1000)


def _micros(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000)
