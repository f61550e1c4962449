"""Projects with one stream each, brokers of all kinds, and what was sent against what landed."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import duckdb

from tarn.storage.duck import literal
from tarn.storage.lake import Lake
from tests.drills.telling import Drill
from tests.engine import kafka, kinesis, mosquitto, pubsub

COMMAND = [sys.executable, "-c", "from tarn.cli import main; main()", "stream", "shop"]
_BURST = 40
_AGAIN, _BAD = 0.02, 0.01
"""Shares of messages that come twice, and of those that are no JSON."""


@dataclass(frozen=True)
class Running:
    """A broker: the rest of a declaration, variables, how it is sent to, and its process."""

    declared: str
    environment: Mapping[str, str]
    send: Callable[[Sequence[bytes]], None]
    process: int


@dataclass
class Made:
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


@dataclass(frozen=True)
class Stream:
    """A project with one stream, and its lake in it."""

    folder: Path
    kind: str
    broker: Running

    def __post_init__(self) -> None:
        (self.folder / "ingestion").mkdir(parents=True)
        (self.folder / "dbt_project.yml").touch()
        (self.folder / "ingestion/shop.yml").write_text(
            "system: shop\ndescription: For a drill.\nowner: {name: Us, email: us@example.com}\n"
            f"kind: {self.kind}\n{self.broker.declared}"
        )

    @property
    def lake(self) -> Lake:
        return Lake(str(self.folder / "lake"))

    @property
    def environment(self) -> Mapping[str, str]:
        ours = {"TARN_LAKE": str(self.folder / "lake"), "TARN_WORK": str(self.folder / ".tarn")}
        return {**os.environ, **ours, **self.broker.environment}

    def select(self, sql: str, table: str) -> list[tuple[object, ...]]:
        found = self.lake.table(table)
        if found is None:
            return []
        files = ", ".join(literal(uri.removeprefix("file://")) for uri in found.file_uris())
        with duckdb.connect() as connection:
            return connection.execute(sql.format(f"read_parquet([{files}])")).fetchall()


def compare(told: Drill, stream: Stream, made: Made) -> None:
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


@contextmanager
def _kafka(folder: Path) -> Iterator[Running]:
    with kafka.process() as (address, number):
        topic = kafka.Topic(address, "events")

        def send(values: Sequence[bytes]) -> None:
            for partition in range(4):
                topic.send(*values[partition::4], partition=partition)

        yield Running(_declared(f"bootstrap_servers: {address!r}"), {}, send, number)


@contextmanager
def _kinesis(folder: Path) -> Iterator[Running]:
    with kinesis.kinesis_server(folder / "kinesis.log") as service:
        service.create("events", 2)
        told = _declared(
            f"region: {kinesis.REGION}, endpoint_url: {service.url!r}", "stream: events"
        )
        keys = {name.upper(): value for name, value in kinesis.KEYS.items()}
        yield Running(told, keys, partial(service.put, "events"), service.process)


@contextmanager
def _pubsub(folder: Path) -> Iterator[Running]:
    command = [sys.executable, "-m", "demo.streams.pubsub_server", "0"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip().partition("=")[2]
        service = pubsub.Broker(address)
        service.make("events")

        def send(values: Sequence[bytes]) -> None:
            service.publish("events", values)

        variables = {"PUBSUB_EMULATOR_HOST": address}
        try:
            yield Running(_declared(f"project: {pubsub.PROJECT}"), variables, send, server.pid)
        finally:
            service.close()
            server.kill()


@contextmanager
def _mqtt(folder: Path) -> Iterator[Running]:
    with mosquitto.mosquitto_broker() as service:

        def send(values: Sequence[bytes]) -> None:
            service.publish([("events/one", each) for each in values])

        login = f"username: {mosquitto.USER}, password: '${{MQTT_PASSWORD}}'"
        told = _declared(f"url: {service.url!r}, {login}", "topic: events/+")
        assert service.process is not None
        yield Running(told, {"MQTT_PASSWORD": mosquitto.PASSWORD}, send, service.process.pid)


def _declared(connection: str, topic: str = "") -> str:
    table = f"{{{topic + ', ' if topic else ''}write: append, primary_key: [id]"
    return f"connection: {{{connection}}}\ntables:\n  events: {table}, commit_every: 300ms}}\n"


BROKERS = {"kafka": _kafka, "kinesis": _kinesis, "pubsub": _pubsub, "mqtt": _mqtt}
