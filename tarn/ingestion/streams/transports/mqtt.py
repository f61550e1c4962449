"""MQTT: the broker keeps what has not landed, and forgets each message when it is acknowledged.

paho reads in a thread of its own and hands over through a queue of bounded length; when that is
full, nothing is read from the broker. A message that the broker sends again while the first has
not landed is known by its number; one that it sends again later is known by its key.
"""

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from queue import Empty, Full, Queue, SimpleQueue
from threading import Event
from typing import Any
from uuid import uuid4

import pyarrow as pa
from paho.mqtt.client import MQTTMessage, topic_matches_sub
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.mqtt import MqttSystem, filter_of
from tarn.ingestion.masking import secrets_in
from tarn.ingestion.streams import Batch, Place, Position, Transport
from tarn.ingestion.streams.transports.mqtt_client import (
    NEWEST,
    WINDOW,
    MqttClient,
    begin,
    mqtt_client,
)
from tarn.settings import Settings
from tarn.storage.lake import Lake

_UNKNOWN_VERSION = 132
_TAKEN_OVER = 142
_REFUSED = {
    133: "give another client_id",
    134: "mend username and password",
    135: "mend username and password, or let this user connect",
    138: "ask the broker's owner",
    140: "mend username and password",
}
_FAILED = 128
"""Reason codes from here on are failures."""
_SHORT_SECONDS = 10.0
_SHORT_LIVES = 5
"""Connections in a row that the broker ended at once, until Tarn gives up."""
_SILENCES = 2
"""Connections in a row that the broker ended without a word."""
_ANSWER_SECONDS = 5.0
_LISTEN_SECONDS = 5.0
_NO_TOPIC = "tarn/none"
_USUAL_WINDOW = 20
"""Messages that a broker sends to clients of MQTT 3.1.1 before the first is acknowledged."""
_STALLED_SECONDS = 0.2


@dataclass(frozen=True)
class _Receipt:
    """By which a message is acknowledged, in the session it came in."""

    session: int
    number: int


@dataclass(frozen=True)
class _Came:
    """A message as it came."""

    topic: str
    payload: bytes
    at: int
    """Microseconds since 1970."""
    receipt: _Receipt | None


class Mqtt(Transport):
    """The topics of one broker."""

    keeps_positions = False
    offset_type = pa.string()

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared, self.home = declared, home
        assert isinstance(declared.system, MqttSystem)
        self.system = declared.system
        self.connection = self.system.connection
        self.secrets = frozenset(secrets_in(self.connection.model_dump()))
        self._where = f"{declared.name} ({declared.file.where('connection')})"
        self._name = self.connection.client_id or f"tarn-{declared.name}"
        self._protocol: int | str = self.connection.protocol
        self._client: MqttClient | None = None
        self._inbox: Queue[_Came | None] = Queue(WINDOW)
        self._left: set[str] = set()
        self._sessions = count(1)
        self._session = 0
        self._unlanded: set[int] = set()
        """Numbers of this session's messages that have come and not landed."""
        self._failure: TarnError | None = None
        self._is_too_new = self._is_closed = self._is_resumed = False
        self._away: str | None = None
        self._gaps: SimpleQueue[tuple[Place, str]] = SimpleQueue()
        self._connected_at = self._came_at = self._begun_at = 0.0
        self._short_lives = self._silences = 0

    def open(self, position: Callable[[Place], Position | None]) -> None:
        self._is_closed = False
        self._failure, self._away = None, None
        self._landed = {
            table: Lake.open(self.home).table(f"raw_{self.declared.name}.{table}") is not None
            for table in self.system.tables
        }
        self._connect()

    def read(self, seconds: float, most: int) -> list[Batch]:
        if self._is_too_new or self._is_unanswered:
            self._speak_older()
        came: list[_Came] = []
        with suppress(Empty):
            wait = seconds
            while len(came) < most:
                each = self._inbox.get(timeout=wait) if wait else self._inbox.get_nowait()
                came += [each] if each is not None else []
                wait = 0
        if not came and self._failure is not None:
            raise self._failure
        return self._batches(came)

    @property
    def _is_unanswered(self) -> bool:
        """The broker is there and says nothing: some old ones do so when they are asked by 5."""
        is_asked = self._protocol == NEWEST and not self._connected_at and self._away is None
        return is_asked and time.monotonic() - self._begun_at > _ANSWER_SECONDS

    def leave(self, table: str) -> None:
        self._left.add(table)

    def landed(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            for receipt in batch.receipts:
                self._acknowledge(receipt)

    def gaps(self) -> Sequence[tuple[Place, str]]:
        return [self._gaps.get() for _ in range(self._gaps.qsize())]

    def lag(self) -> Mapping[Place, int | None]:
        """MQTT tells nobody how much waits."""
        return {
            (table, spec.topic): None
            for table, spec in self.system.tables.items()
            if table not in self._left
        }

    @property
    def is_full(self) -> bool:
        waiting = len(self._unlanded)
        if self._protocol == NEWEST:
            return waiting >= WINDOW
        # What the broker's limit is nobody says: it seems to be reached when nothing comes.
        is_stalled = time.monotonic() - self._came_at > _STALLED_SECONDS
        return waiting >= _USUAL_WINDOW and is_stalled and self._inbox.empty()

    @property
    def trouble(self) -> str | None:
        return self._away

    def close(self) -> None:
        self._is_closed = True
        if self._client is not None:
            self._await_acknowledged(self._client)
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None
        self._inbox = Queue(WINDOW)
        self._unlanded = set()

    @staticmethod
    def _await_acknowledged(client: MqttClient) -> None:
        """Until the broker has seen to all acknowledgements, which it does in order: those it has
        not read when another client comes by this name are as if they had never been sent."""
        is_answered = Event()
        client.on_unsubscribe = lambda *_: is_answered.set()
        if client.is_connected():
            client.unsubscribe(_NO_TOPIC)
            is_answered.wait(_ANSWER_SECONDS)

    def _connect(self) -> None:
        client = mqtt_client(
            self.connection, self._name, self._protocol, self._where, self.home, is_kept=True
        )
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        self._client = client
        self._begun_at = time.monotonic()
        begin(client, self.connection, is_kept=True)

    def _speak_older(self) -> None:
        """The broker knows only an older MQTT."""
        self._is_too_new = False
        self._protocol = "3.1.1"
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
        self._connect()

    def _batches(self, came: Sequence[_Came]) -> list[Batch]:
        """By topic, in order."""
        groups: dict[Place, list[_Came]] = {}
        for each in came:
            table = self._table(each.topic)
            if table is None:
                # The session has topics of an earlier declaration.
                self._acknowledge(each.receipt)
            elif table not in self._left:
                groups.setdefault((table, each.topic), []).append(each)
        return [
            Batch(
                table,
                topic,
                [each.payload for each in group],
                [_named(each.payload) for each in group],
                [each.at for each in group],
                receipts=[each.receipt for each in group],
            )
            for (table, topic), group in groups.items()
        ]

    def _table(self, topic: str) -> str | None:
        for table, spec in self.system.tables.items():
            if topic_matches_sub(filter_of(spec.topic), topic):
                return table
        return None

    def _acknowledge(self, receipt: _Receipt | None) -> None:
        """What came in a session that the broker has forgotten cannot be acknowledged."""
        if receipt is None or receipt.session != self._session or self._client is None:
            return
        self._unlanded.discard(receipt.number)
        self._client.ack(receipt.number, 1)

    # What follows runs in paho's thread.

    def _on_connect(self, client: Any, _: Any, flags: Any, code: ReasonCode, __: Any) -> None:
        self._silences = 0
        if code.is_failure:
            self._refused(client, code)
            return
        self._connected_at = time.monotonic()
        self._away = None
        self._is_resumed = flags.session_present
        if not flags.session_present:
            if self._session or any(self._landed.values()):
                self._forgotten()
            self._session = next(self._sessions)
            self._unlanded = set()
        elif not self._session:
            self._session = next(self._sessions)
        client.subscribe(self._wishes())

    def _wishes(self) -> list[Any]:
        specs = self.system.tables.values()
        if self._protocol != NEWEST:
            return [(spec.topic, spec.qos) for spec in specs]
        kept = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
        shared = SubscribeOptions.RETAIN_DO_NOT_SEND
        return [
            (
                spec.topic,
                SubscribeOptions(
                    spec.qos,
                    retainHandling=shared if spec.topic != filter_of(spec.topic) else kept,
                ),
            )
            for spec in specs
        ]

    def _forgotten(self) -> None:
        """The session is new though there was one before."""
        what = (
            f"the broker had forgotten {self._name}: what was sent while it was away is lost,"
            " unless its publishers send it again"
        )
        for table, spec in self.system.tables.items():
            if table not in self._left:
                self._gaps.put(((table, spec.topic), what))

    def _refused(self, client: Any, code: ReasonCode) -> None:
        if code.value == _UNKNOWN_VERSION and self._protocol == NEWEST:
            self._give_way(client)
        elif code.value in _REFUSED:
            fix = _REFUSED[code.value]
            self._fail(client, TarnError(f"the broker says: {code}", self._where, fix))
        else:
            self._away = f"{self.connection.url} says: {code}"

    def _give_way(self, client: Any) -> None:
        """To a client of an older version."""
        self._is_too_new = True
        client.disconnect()
        self._wake()

    def _on_connect_fail(self, client: Any, _: Any) -> None:
        error = client.failure
        if isinstance(error, ssl.SSLCertVerificationError):
            fix = "give ca_file, or mend the host's name in url"
            self._fail(client, TarnError(str(error), self._where, fix))
        self._away = f"{self.connection.url} cannot be reached: {error}"

    def _on_disconnect(self, client: Any, _: Any, flags: Any, code: ReasonCode, __: Any) -> None:
        if self._is_closed or client is not self._client or self._is_too_new:
            return
        if code.value == _TAKEN_OVER:
            self._fail(client, self._rival(f"another client has connected as {self._name}"))
            return
        self._away = self._away or f"{self.connection.url} has gone: {code}"
        if self._connected_at == 0.0 and self._protocol == NEWEST:
            # Some old brokers do not even answer.
            self._silences += 1
            if self._silences >= _SILENCES:
                self._give_way(client)
            return
        lived = time.monotonic() - self._connected_at
        self._short_lives = self._short_lives + 1 if lived < _SHORT_SECONDS else 0
        if self._connected_at and self._short_lives >= _SHORT_LIVES:
            what = f"the broker has ended {_SHORT_LIVES} connections of {self._name} at once"
            self._fail(client, self._rival(what))

    def _rival(self, what: str) -> TarnError:
        return TarnError(what, self._where, "run one of them, or give each its own client_id")

    def _on_subscribe(self, client: Any, _: Any, __: int, codes: Any, ___: Any) -> None:
        for table, code in zip(self.system.tables, codes, strict=False):
            if refusal := self._refusal(table, code):
                self._fail(client, refusal)

    def _refusal(self, table: str, code: ReasonCode) -> TarnError | None:
        """Of a topic that the broker does not give, or not as reliably as it is asked to."""
        spec = self.system.tables[table]
        if code.value < _FAILED and code.value >= spec.qos:
            return None
        where = f"{self.declared.name} ({self.declared.file.where('tables', table)})"
        what = f"the broker does not give {spec.topic} by qos {spec.qos}: {code}"
        return TarnError(what, where, "let this user read it")

    def _on_message(self, client: Any, _: Any, message: MQTTMessage) -> None:
        receipt = None
        if message.qos:
            is_known = message.dup and message.mid in self._unlanded
            if is_known or self._is_old_news(message):
                if not is_known:
                    client.ack(message.mid, 1)
                return
            self._unlanded.add(message.mid)
            receipt = _Receipt(self._session, message.mid)
        self._came_at = time.monotonic()
        self._hand(_Came(message.topic, bytes(message.payload), time.time_ns() // 1000, receipt))

    def _is_old_news(self, message: MQTTMessage) -> bool:
        """A retained message that came when the session began. MQTT 3.1.1 sends it again each time
        a topic is asked for."""
        if not (message.retain and self._is_resumed and self._protocol != NEWEST):
            return False
        table = self._table(message.topic)
        return table is not None and self._landed[table]

    def _hand(self, came: _Came) -> None:
        """Wait until there is room: meanwhile nothing is read from the broker."""
        while not self._is_closed:
            with suppress(Full):
                self._inbox.put(came, timeout=0.2)
                return

    def _fail(self, client: Any, failure: TarnError) -> None:
        """For good: the client connects no more."""
        self._failure = self._failure or failure
        client.disconnect()
        self._wake()

    def _wake(self) -> None:
        with suppress(Full):
            self._inbox.put_nowait(None)

    # Looking around, by a client that the broker forgets.

    def check(self) -> list[str]:
        with _Look(self) as look:
            return look.lines()

    def sample(self, table: str, most: int) -> list[Batch]:
        with _Look(self) as look:
            came = look.listen([self.system.tables[table].topic], most)
        return [batch for batch in self._batches(came) if batch.table == table]


class _Look:
    """A connection of another name, so that the session of the stream stays as it is."""

    def __init__(self, mqtt: Mqtt) -> None:
        self.mqtt = mqtt
        self.answers: Queue[Any] = Queue()
        self.came: Queue[_Came] = Queue(WINDOW)
        self.granted: Queue[Any] = Queue()

    def __enter__(self) -> "_Look":
        mqtt = self.mqtt
        for protocol in dict.fromkeys((mqtt._protocol, "3.1.1")):
            self.answers = Queue()
            self._connect(protocol)
            try:
                answer = self.answers.get(timeout=_ANSWER_SECONDS)
            except Empty:
                answer = OSError("no answer")
            self.protocol = protocol
            if isinstance(answer, ReasonCode) and not answer.is_failure:
                return self
            self.__exit__()
            if isinstance(answer, ReasonCode) and answer.value != _UNKNOWN_VERSION:
                fix = _REFUSED.get(answer.value)
                raise TarnError(f"the broker says: {answer}", mqtt._where, fix)
        what = f"{mqtt.connection.url} cannot be reached: {answer}"
        raise TarnError(what, mqtt._where, "check the address, and that the broker runs")

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def lines(self) -> list[str]:
        """What the broker can, and whether it gives the topics."""
        mqtt = self.mqtt
        lines = [f"MQTT {self.protocol} at {mqtt.connection.url}, as {mqtt._name}"]
        for table, spec in mqtt.system.tables.items():
            self.client.subscribe(spec.topic, spec.qos)
            if refusal := mqtt._refusal(table, self.granted.get(timeout=_ANSWER_SECONDS)[0]):
                raise refusal
            lines.append(f"{table}: {spec.topic} by qos {spec.qos}")
        return lines

    def listen(self, topics: Sequence[str], most: int) -> list[_Came]:
        """What comes in a few seconds."""
        self.client.subscribe([(filter_of(topic), 0) for topic in topics])
        came: list[_Came] = []
        until = time.monotonic() + _LISTEN_SECONDS
        while len(came) < most and (left := until - time.monotonic()) > 0:
            with suppress(Empty):
                came.append(self.came.get(timeout=left))
        return came

    def _connect(self, protocol: int | str) -> None:
        mqtt = self.mqtt
        name = f"tarn-{uuid4().hex[:16]}"
        client = mqtt_client(mqtt.connection, name, protocol, mqtt._where, mqtt.home, is_kept=False)
        answers = self.answers
        client.on_connect = lambda c, u, flags, code, found: answers.put(code)
        client.on_connect_fail = lambda c, u: answers.put(client.failure)
        client.on_disconnect = lambda *_: answers.put(OSError("it ends the connection"))
        client.on_subscribe = lambda c, u, mid, codes, found: self.granted.put(codes)
        client.on_message = self._on_message
        self.client = client
        begin(client, mqtt.connection, is_kept=False)

    def _on_message(self, client: Any, _: Any, message: MQTTMessage) -> None:
        with suppress(Full):
            came = _Came(message.topic, bytes(message.payload), time.time_ns() // 1000, None)
            self.came.put_nowait(came)


def _named(payload: bytes) -> str:
    """What names a message in its topic, however often it is sent: MQTT has no name for it."""
    return blake2b(payload, digest_size=12).hexdigest()
