"""kill -9 of `tarn stream` while events come, for each kind of broker: nothing lost or doubled."""

import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import TypeAlias

import duckdb

from tarn.storage.duck import literal
from tarn.storage.lake import Lake
from tests.drills.telling import Drill
from tests.drills.watching import Kill, Moment, run
from tests.engine import kafka, kinesis, mosquitto, pubsub

Send: TypeAlias = Callable[[Sequence[bytes]], None]
_COMMANDS = [sys.executable, "-c", "from tarn.cli import main; main()", "stream", "shop"]
_MOMENTS = (
    Moment("rows are written", r"raw_shop/events/.*\.parquet"),
    Moment("rows are committed", r"raw_shop/events/_delta_log/\d+\.json"),
    Moment("bad messages are committed", r"quarantine_shop/events/_delta_log/\d+\.json"),
)
_ANY_TIME = 0.3
"""Share of kills at no particular moment."""
_LATEST = 20.0
_LEASES, _LEASE = 6, 10.0
_BURST, _PAUSE = 40, 0.05
_AGAIN, _BAD = 0.02, 0.01
"""Shares of messages that come twice, and of those that are no JSON."""


@dataclass
class _Made:
    """What has been sent."""

    good: dict[str, int] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    sent: int = 0

    def messages(self, rng: random.Random) -> list[bytes]:
        """The next ones."""
        found = []
        for _ in range(_BURST):
            self.sent += 1
            if rng.random() < _BAD:
                text = f'{{"id": "cut {self.sent}'
                self.bad.add(text)
            else:
                known = self.good and rng.random() < _AGAIN
                key = rng.choice(list(self.good)[-200:]) if known else f"event {self.sent}"
                value = self.good.setdefault(key, rng.randrange(10**9))
                text = json.dumps({"id": key, "value": value})
            found.append(text.encode())
        return found


def drill(seed: int, rounds: int, folder: Path) -> Drill:
    """So many kills, in turns of the kinds."""
    told = Drill("stream", seed, rounds)
    for number, (kind, broker) in enumerate(_BROKERS.items()):
        kills = rounds // len(_BROKERS) + (number < rounds % len(_BROKERS))
        with broker(folder) as (declared, environment, send):
            stream = _Stream(folder / kind, kind, declared, environment)
            _kill(told, stream, send, random.Random(seed + number), kills)
    return told


@dataclass(frozen=True)
class _Stream:
    """A project with one stream, and its lake in it."""

    folder: Path
    kind: str
    declared: str
    more: Mapping[str, str]

    def __post_init__(self) -> None:
        (self.folder / "ingestion").mkdir(parents=True)
        (self.folder / "dbt_project.yml").touch()
        (self.folder / "ingestion/shop.yml").write_text(
            "system: shop\ndescription: For a drill.\nowner: {name: Us, email: us@example.com}\n"
            f"kind: {self.kind}\n{self.declared}"
        )

    @property
    def lake(self) -> Lake:
        return Lake(str(self.folder / "lake"))

    @property
    def environment(self) -> Mapping[str, str]:
        ours = {"TARN_LAKE": str(self.folder / "lake"), "TARN_WORK": str(self.folder / ".tarn")}
        return {**os.environ, **ours, **self.more}

    def select(self, sql: str, table: str) -> list[tuple[object, ...]]:
        found = self.lake.table(table)
        if found is None:
            return []
        files = ", ".join(literal(uri.removeprefix("file://")) for uri in found.file_uris())
        with duckdb.connect() as connection:
            return connection.execute(sql.format(f"read_parquet([{files}])")).fetchall()


def _kill(told: Drill, stream: _Stream, send: Send, rng: random.Random, kills: int) -> None:
    # Some brokers keep messages only for those who have asked for them.
    run(stream, [*_COMMANDS, "--once"], ())
    made, stop = _Made(), Event()
    sender = Thread(target=_sent, args=(made, send, rng, stop))
    sender.start()
    try:
        while told.did[f"kills of {stream.kind}"] < kills and not told.faults:
            at = None if rng.random() < _ANY_TIME else rng.choice(_MOMENTS)
            after = rng.uniform(1.5, 4) if at is None else rng.uniform(0, 0.05)
            kill = Kill(at, rng.randrange(1, 4), after, _LATEST)
            ran = run(stream, _COMMANDS, _MOMENTS, kill)
            told.did[f"kills of {stream.kind}"] += ran.killed
            if not ran.killed:
                told.fault(f"{stream.kind} ended by itself: {ran.output[-2000:]}")
    finally:
        stop.set()
        sender.join()
    for _ in range(_LEASES):
        ran = run(stream, [*_COMMANDS, "--once"], ())
        told.check(f"{stream.kind} lands what is left", ran.returncode == 0, ran.output[-2000:])
        if len(stream.select("select 1 from {}", "raw_shop.events")) >= len(made.good):
            break
        # What was leased to the process that was killed comes again when the lease is over.
        sleep(_LEASE)
    told.did["messages"] += made.sent
    _compare(told, stream, made)


def _sent(made: _Made, send: Send, rng: random.Random, stop: Event) -> None:
    while not stop.is_set():
        send(made.messages(rng))
        sleep(_PAUSE)


def _compare(told: Drill, stream: _Stream, made: _Made) -> None:
    rows = stream.select("select id, value from {}", "raw_shop.events")
    twice = len(rows) - len({row[0] for row in rows})
    told.check(f"{stream.kind} doubles nothing", not twice, f"{twice} rows")
    lost = len(made.good.items() - set(rows))
    told.check(f"{stream.kind} loses and bends nothing", not lost, f"{lost} of {len(made.good)}")
    strange = len(set(rows) - made.good.items())
    told.check(f"{stream.kind} has nothing that was not sent", not strange, f"{strange} rows")
    kept = stream.select("select _row from {}", "quarantine_shop.events")
    texts = sorted(json.loads(str(row))["message"] for (row,) in kept)
    otherwise = f"{len(texts)} of {len(made.bad)}"
    told.check(f"{stream.kind} keeps each bad message once", texts == sorted(made.bad), otherwise)


Opened: TypeAlias = tuple[str, Mapping[str, str], Send]
"""The rest of a declaration, variables, and how messages are sent."""


@contextmanager
def _kafka(folder: Path) -> Iterator[Opened]:
    with kafka.broker() as address:
        topic = kafka.Topic(address, "events")

        def send(values: Sequence[bytes]) -> None:
            for partition in range(4):
                topic.send(*values[partition::4], partition=partition)

        yield _declared(f"bootstrap_servers: {address!r}"), {}, send


@contextmanager
def _kinesis(folder: Path) -> Iterator[Opened]:
    with kinesis.kinesis_server(folder / "kinesis.log") as service:
        service.create("events", 2)
        told = _declared(
            f"region: {kinesis.REGION}, endpoint_url: {service.url!r}", "stream: events"
        )
        keys = {name.upper(): value for name, value in kinesis.KEYS.items()}
        yield told, keys, partial(service.put, "events")


@contextmanager
def _pubsub(folder: Path) -> Iterator[Opened]:
    with pubsub.broker("demo") as service:
        service.make("events")

        def send(values: Sequence[bytes]) -> None:
            service.publish("events", values)

        variables = {"PUBSUB_EMULATOR_HOST": service.address}
        yield _declared(f"project: {pubsub.PROJECT}"), variables, send


@contextmanager
def _mqtt(folder: Path) -> Iterator[Opened]:
    with mosquitto.mosquitto_broker() as service:

        def send(values: Sequence[bytes]) -> None:
            service.publish([("events/one", each) for each in values])

        login = f"username: {mosquitto.USER}, password: '${{MQTT_PASSWORD}}'"
        told = _declared(f"url: {service.url!r}, {login}", "topic: events/+")
        yield told, {"MQTT_PASSWORD": mosquitto.PASSWORD}, send


def _declared(connection: str, topic: str = "") -> str:
    table = f"{{{topic + ', ' if topic else ''}write: append, primary_key: [id]"
    return f"connection: {{{connection}}}\ntables:\n  events: {table}, commit_every: 300ms}}\n"


_BROKERS = {"kafka": _kafka, "kinesis": _kinesis, "pubsub": _pubsub, "mqtt": _mqtt}
