"""Apache Kafka, through librdkafka.

Partitions are shared out by a consumer group of the broker's; where reading begins in each, only
the lake says. Offsets that are committed to the broker are for Kafka's own tools.

A position is the offset of the next message, and above its 63 bits what tells the topic from one
of the same name: a topic that was made anew may have more messages than were read of the old one.
"""

import hashlib
import logging
import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import pyarrow as pa
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.kafka import KafkaSystem
from tarn.ingestion.masking import masked, secrets_in
from tarn.ingestion.names import snake_case
from tarn.ingestion.sources import Offered
from tarn.ingestion.streams import Batch, LostMessagesError, Place, Position, Transport
from tarn.settings import Settings

_SILENT = logging.getLogger(f"{__name__}.client")
_SECONDS = 10.0
"""How long a broker may take to answer."""
_SAMPLE_SECONDS = 5.0
_TUNED: Mapping[str, Any] = {
    # What librdkafka holds ahead bounds memory; a fetch of a megabyte keeps it filled.
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 65_536,
    "fetch.message.max.bytes": 1_048_576,
    "fetch.wait.max.ms": 100,
    "fetch.error.backoff.ms": 100,
    "topic.metadata.refresh.interval.ms": 10_000,
    "session.timeout.ms": 10_000,
    "reconnect.backoff.max.ms": 2_000,
    "allow.auto.create.topics": False,
}
_OFFSET_BITS = 63
_OFFSETS = (1 << _OFFSET_BITS) - 1
_AWAY = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE)
_REFUSED = (
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)


class Kafka(Transport):
    """One consumer for all topics of a system."""

    offset_type = pa.int64()
    keeps_positions = True

    def __init__(self, declared: Declared, home: Settings) -> None:
        assert isinstance(declared.system, KafkaSystem)
        self.declared, self.home, self.system = declared, home, declared.system
        self.secrets = frozenset(secrets_in(self.system.connection.model_dump()))
        self._tables: dict[str, list[str]] = defaultdict(list)
        for table in self.system.tables:
            self._tables[self.system.topic(table)].append(table)
        self._check_topics()
        self._consumer: Consumer | None = None
        self._position: Callable[[Place], Position | None] = lambda place: None
        self._next: dict[tuple[str, int], int | None] = {}
        """Offset of the next message in each partition that is read; None if nobody knows yet."""
        self._topic_ids: dict[str, int] = {}
        """63 bits of each topic's own id; none where the broker does not tell."""
        self._left: set[str] = set()
        """Topics that are read no more."""
        self._lost: list[Place] = []
        self._failure: Exception | None = None
        self._trouble: str | None = None

    def open(self, position: Callable[[Place], Position | None]) -> None:
        self._position = position
        self._next, self._lost, self._failure = {}, [], None
        self._trouble = None
        self._consumer = self._connect(
            {
                "group.id": f"tarn-{self.declared.name}",
                # A consumer that was killed and comes again gets its partitions back at once.
                "group.instance.id": self._name(),
                "partition.assignment.strategy": "cooperative-sticky",
                **_TUNED,
            }
        )
        self._consumer.subscribe(
            list(self._tables),
            on_assign=self._take,
            on_revoke=self._give,
            on_lost=self._give,
        )

    def read(self, seconds: float, most: int) -> list[Batch]:
        assert self._consumer is not None
        try:
            messages = self._consumer.consume(most, seconds)
        except KafkaException as error:
            raise self._told(error.args[0]) from error
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        good = [each for each in messages if each.error() is None]
        if len(good) < len(messages):
            for each in messages:
                if (said := each.error()) is not None:
                    self._heed(said, each)
        if good:
            self._trouble = None
        return list(self._batches(good))

    def leave(self, table: str) -> None:
        assert self._consumer is not None
        topic = self.system.topic(table)
        self._left.add(topic)
        parts = [TopicPartition(*each) for each in self._next if each[0] == topic]
        with suppress(KafkaException):
            self._consumer.pause(parts)

    def landed(self, batches: Sequence[Batch]) -> None:
        assert self._consumer is not None
        reached: dict[str, int] = {}
        for each in batches:
            if each.position is not None:
                offset = each.position & _OFFSETS
                reached[each.partition] = max(offset, reached.get(each.partition, 0))
        offsets = [
            TopicPartition(topic, int(number), offset)
            for partition, offset in reached.items()
            for topic, _, number in [partition.rpartition("-")]
            if (topic, int(number)) in self._next
        ]
        if offsets:
            with suppress(KafkaException):
                self._consumer.commit(offsets=offsets, asynchronous=True)

    def lost(self) -> Sequence[Place]:
        lost, self._lost = self._lost, []
        return lost

    def lag(self) -> Mapping[Place, int | None]:
        return {
            place: self._behind(part)
            for part in self._next
            if part[0] not in self._left
            for place in [self._place(*part)]
        }

    @property
    def trouble(self) -> str | None:
        return self._trouble

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def sample(self, table: str, most: int) -> list[Batch]:
        """The oldest messages there are. Takes part in no group, so no reader is disturbed."""
        topic = self.system.topic(table)
        self._consumer = self._connect({"group.id": f"tarn-sample-{self._name()}", **_TUNED})
        try:
            parts = [TopicPartition(topic, n, OFFSET_BEGINNING) for n in self._partitions(topic)]
            self._next = dict.fromkeys(((topic, part.partition) for part in parts), None)
            left = sum(high - low for low, high in map(self._range, parts))
            self._consumer.assign(parts)
            found: list[Batch] = []
            until = monotonic() + _SAMPLE_SECONDS
            while (wanted := min(left, most)) > 0 and monotonic() < until:
                batches = self.read(0.5, wanted)
                taken = sum(len(each.values) for each in batches)
                left, most = left - taken, most - taken
                found += batches
            return found
        finally:
            self.close()

    def check(self) -> list[str]:
        self._consumer = self._connect({"group.id": f"tarn-sample-{self._name()}"})
        try:
            topics = {topic: self._partitions(topic) for topic in self._tables}
            told = [f"the broker answers at {self.system.connection.bootstrap_servers}"]
            for topic, numbers in topics.items():
                ranges = [self._range(TopicPartition(topic, number)) for number in numbers]
                messages = sum(high - low for low, high in ranges)
                told.append(f"{topic}: {len(numbers)} partitions, {messages:,} messages")
            return told
        finally:
            self.close()

    def offered(self) -> list[Offered]:
        self._consumer = self._connect({"group.id": f"tarn-sample-{self._name()}"})
        try:
            known = self._topics()
        finally:
            self.close()
        return [
            Offered(name, {} if name == topic else {"topic": topic}, {})
            for topic in known
            if not topic.startswith("_")
            for name in [snake_case(topic.replace(".", "_").replace("-", "_"))]
        ]

    def _connect(self, settings: Mapping[str, Any]) -> Consumer:
        connection = self.system.connection
        try:
            return Consumer(
                {
                    **settings,
                    **connection.options,
                    "bootstrap.servers": connection.bootstrap_servers,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    # What is not there any more is told; a position is never chosen silently.
                    "auto.offset.reset": "error",
                    "error_cb": self._heed,
                    "logger": _SILENT,
                }
            )
        except KafkaException as error:
            raise self._told(error.args[0]) from error

    def _name(self) -> str:
        """The same for each consumer of this system in this project on this machine. A broker that
        knows the name gives back the partitions that it had, of other topics too."""
        topics = ",".join(sorted(self._tables))
        place = f"{socket.gethostname()}:{self.home.work_dir}:{self.home.lake}:{topics}"
        return f"tarn-{hashlib.sha256(place.encode()).hexdigest()[:16]}"

    def _check_topics(self) -> None:
        for topic, tables in self._tables.items():
            if len(tables) > 1:
                raise TarnError(
                    f"topic {topic} is read by {' and '.join(tables)}",
                    self.declared.file.where("tables", tables[1]),
                    "read it into one table; models may make several of it",
                )

    def _take(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        """Partitions are ours now: read on from where the lake is."""
        self._learn_ids({part.topic for part in parts})
        for part in parts:
            # One that is not assigned here would be, from wherever the broker thinks we are.
            part.offset = OFFSET_END
            try:
                reached = self._reached(part.topic, part.partition)
            except Exception as failure:
                self._failure = failure
                continue
            spec = self.system.tables[self._tables[part.topic][0]]
            begin = OFFSET_BEGINNING if spec.start == "earliest" else OFFSET_END
            part.offset = begin if reached is None else reached
            self._next[part.topic, part.partition] = reached
        consumer.incremental_assign(parts)
        if left := [part for part in parts if part.topic in self._left]:
            consumer.pause(left)

    def _reached(self, topic: str, number: int) -> int | None:
        """The offset that comes next; raises LostMessagesError if it is that of another topic."""
        place = self._place(topic, number)
        position = self._position(place)
        if position is None:
            return None
        offset, known = position & _OFFSETS, position >> _OFFSET_BITS
        if known and self._topic_ids.setdefault(topic, known) != known:
            raise self._gap(topic, number, offset, "the topic was made anew")
        return offset

    def _learn_ids(self, topics: Collection[str]) -> None:
        """What tells the topics from others of their names, where the broker says."""
        connection = self.system.connection
        settings = {**connection.options, "bootstrap.servers": connection.bootstrap_servers}
        admin = AdminClient(settings, logger=_SILENT)
        with suppress(KafkaException):
            # Without a controller the question would be waited for in vain.
            cluster = admin.list_topics(timeout=_SECONDS)
            if cluster.controller_id not in cluster.brokers:
                return
            for topic, answer in admin.describe_topics(TopicCollection(list(topics))).items():
                number = answer.result().topic_id
                bits = number.get_most_significant_bits() ^ number.get_least_significant_bits()
                self._topic_ids[topic] = bits & _OFFSETS

    def _give(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        """Partitions are another's now."""
        for part in parts:
            self._next.pop((part.topic, part.partition), None)
            self._lost.append(self._place(part.topic, part.partition))

    def _batches(self, messages: list[Any]) -> Iterator[Batch]:
        """Messages of partitions that are ours, in their order, by partition."""
        parts: dict[tuple[str, int], list[Any]] = {}
        for each in messages:
            part = each.topic(), each.partition()
            if part in parts:
                parts[part].append(each)
            elif part in self._next:
                parts[part] = [each]
        for (topic, number), found in parts.items():
            reached = found[-1].offset() + 1
            self._next[topic, number] = reached
            table, partition = self._place(topic, number)
            yield Batch(
                table,
                partition,
                [each.value() for each in found],
                [each.offset() for each in found],
                [_micros(*each.timestamp()) for each in found],
                [each.key() for each in found],
                self._position_at(topic, reached),
            )

    def _position_at(self, topic: str, offset: int) -> Position:
        return self._topic_ids.get(topic, 0) << _OFFSET_BITS | offset

    def _heed(self, error: KafkaError, message: Message | None = None) -> None:
        """What librdkafka says of its troubles, most of which it mends itself."""
        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET and message is not None:
            topic, number = str(message.topic()), int(message.partition() or 0)
            self._learn_ids([topic])
            why = "messages have expired, or the topic was made anew"
            raise self._gap(topic, number, self._next.get((topic, number)), why)
        if error.fatal() or code in _REFUSED:
            self._failure = self._told(error)
        elif code == KafkaError.UNKNOWN_TOPIC_OR_PART and message is not None:
            self._trouble = f"topic {message.topic()} is not there"
        elif code in _AWAY:
            self._trouble = f"no broker answers at {self.system.connection.bootstrap_servers}"
        else:
            logging.getLogger(__name__).info("%s: %s", self.declared.name, error.str())

    def _gap(self, topic: str, number: int, wanted: int | None, why: str) -> LostMessagesError:
        place = self._place(topic, number)
        low, high = self._range(TopicPartition(topic, number))
        return LostMessagesError(
            f"{place[1]}: offset {wanted} comes next, and the broker has {low} to {high}: {why}",
            f"{self.declared.name}.{place[0]} ({self.declared.file.where('tables', place[0])})",
            f"nothing more of it is read; tarn stream {self.declared.name} --accept-gap notes the"
            f" gap and goes on at {low}",
            place=place,
            resume=self._position_at(topic, low),
            between=(f"offset {wanted}", f"offset {low}"),
        )

    def _told(self, error: KafkaError) -> TarnError:
        text = masked(error.str(), self.secrets)
        code, fix = error.code(), "check bootstrap_servers and the broker"
        if code in _REFUSED:
            fix = "check the credentials and rights under connection: options"
        elif code == KafkaError._FENCED or code == KafkaError.FENCED_INSTANCE_ID:
            text, fix = "another process of this machine's name reads the system", "stop one"
        elif code == KafkaError._INVALID_ARG:
            fix = "correct connection: options; names are librdkafka's"
        return TarnError(f"Kafka: {text}", self.declared.file.where("connection"), fix)

    def _behind(self, part: tuple[str, int]) -> int | None:
        """Messages after the last one read; None until the broker has said."""
        assert self._consumer is not None
        try:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(*part), cached=True)
        except KafkaException:
            return None
        reached = self._next.get(part)
        if high < 0:
            return None
        return max(0, high - (low if reached is None else reached))

    def _range(self, part: TopicPartition) -> tuple[int, int]:
        assert self._consumer is not None
        try:
            low, high = self._consumer.get_watermark_offsets(part, timeout=_SECONDS)
        except KafkaException as error:
            raise self._told(error.args[0]) from error
        return low, high

    def _topics(self) -> dict[str, list[int]]:
        assert self._consumer is not None
        try:
            found = self._consumer.list_topics(timeout=_SECONDS).topics
        except KafkaException as error:
            raise self._told(error.args[0]) from error
        return {name: sorted(found[name].partitions) for name in sorted(found)}

    def _partitions(self, topic: str) -> list[int]:
        known = self._topics()
        if not known.get(topic):
            where = self.declared.file.where("tables", self._tables[topic][0])
            raise TarnError(f"there is no topic {topic}", where, "correct topic:, or make it")
        return known[topic]

    def _place(self, topic: str, number: int) -> Place:
        return self._tables[topic][0], f"{topic}-{number}"


def _micros(kind: int, millis: int) -> int:
    """Of a message's timestamp; 1970 if it has none."""
    return 0 if kind == TIMESTAMP_NOT_AVAILABLE else millis * 1000
