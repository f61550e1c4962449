"""The week over and over: the same baskets, as if they were ordered now.

Times are those of now, and orders and events get numbers of their own each time, so that none is
taken for one of 2017. Households, products, amounts and places stay what they were.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import duckdb

from demo.source import report
from demo.streams import brokers, kafka, kinesis, mqtt, pubsub
from demo.streams.messages import FOLDER, Message, write_down

BEGIN = datetime(2017, 12, 30, 17, tzinfo=UTC)
"""A busy Saturday's noon at the stores."""
REPORT_SECONDS = 10
MOST_AT_ONCE = 500
_TIMES = ("occurred_at", "promised_at")
_NAMES = ("event_id", "payment_id", "sign_up_id")


def keep_going(run: Path, environment: brokers.Environment, speed: float, stop: Event) -> None:
    """Send what falls due until told to stop; say every ten seconds how much that was."""
    send = _senders(run, environment)
    sent: Counter[str] = Counter()
    waiting: list[Message] = []
    told = time.monotonic()
    for due, message in _messages(run, speed):
        while (left := due - time.time()) > 0 or len(waiting) >= MOST_AT_ONCE:
            send(waiting)
            sent.update(each.topic for each in waiting)
            waiting.clear()
            if time.monotonic() - told >= REPORT_SECONDS:
                _tell(sent)
                told = time.monotonic()
            if stop.wait(max(min(left, 1), 0)):
                return
        waiting.append(message)


def _tell(sent: Counter[str]) -> None:
    topics = ", ".join(f"{count:,} of {topic}" for topic, count in sorted(sent.items()))
    report(f"streams: sent {topics or 'nothing'}")
    sent.clear()


def _senders(run: Path, environment: brokers.Environment) -> Callable[[list[Message]], None]:
    """A function that sends messages to the brokers of their topics."""
    shop, paid, joined, vans = (environment[name] for name in brokers.BROKERS.values())
    senders: dict[tuple[str, ...], Any] = {
        kafka.TOPICS: kafka.Sender(shop),
        (kinesis.STREAM,): kinesis.Sender(paid),
        (pubsub.TOPIC,): pubsub.Sender(joined),
        (mqtt.TOPIC,): mqtt.Sender(vans, environment[brokers.PASSWORD]),
    }

    def send(messages: list[Message]) -> None:
        kept = (*kafka.TOPICS, kinesis.STREAM)
        write_down(run, (each for each in messages if each.topic in kept))
        for topics, sender in senders.items():
            if mine := [each for each in messages if each.topic in topics]:
                sender.send(mine)

    return send


def _messages(run: Path, speed: float) -> Iterator[tuple[float, Message]]:
    """All messages without end, each with the time at which it is due."""
    week = _week(run)
    begin, now = BEGIN.timestamp(), time.time()
    while True:
        again = _Again(begin, now, speed)
        for sent_at, message, is_readable in week:
            if sent_at >= begin:
                yield again.time(sent_at), again.message(message) if is_readable else message
        begin, now = week[0][0], again.time(week[-1][0])


def _week(run: Path) -> list[tuple[float, Message, bool]]:
    """Each message, when it was sent in 2017, and whether it is JSON; in the order of sending."""
    with duckdb.connect(config={"threads": 1}) as session:
        files = session.read_parquet(str(run / FOLDER / "*.parquet"), filename=True)
        columns = "epoch(sent_at), parse_filename(filename, true), key, value, fault"
        rows = files.project(columns).order("1, 2, 4").fetchall()
    return [
        (sent_at, Message(topic, key, value), fault != "broken JSON")
        for sent_at, topic, key, value, fault in rows
    ]


class _Again:
    """What was from some time on as if it was now: times, and names that are told apart by it."""

    def __init__(self, begin: float, now: float, speed: float) -> None:
        self.begin, self.now, self.speed = begin, now, speed

    def time(self, then: float) -> float:
        return self.now + (then - self.begin) / self.speed

    def message(self, message: Message) -> Message:
        told = json.loads(message.value)
        event = {name: self._value(name, value) for name, value in told.items()}
        return message._replace(value=json.dumps(event, separators=(",", ":")))

    def _value(self, name: str, value: Any) -> Any:
        second = int(self.now)
        if name in _TIMES:
            then = self.time(datetime.fromisoformat(value).timestamp())
            return datetime.fromtimestamp(then, UTC).isoformat(timespec="milliseconds")[:23] + "Z"
        if name == "order_id" and value is not None:
            return second * 1_000_000 + value % 1_000_000
        if name == "sequence":
            return second * 1_000_000 + value
        return f"{value}-{second}" if name in _NAMES else value
