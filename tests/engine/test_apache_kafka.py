"""Apache Kafka itself: what is written to it is in the lake once, whatever happens to either."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.timestamp_pb2 import Timestamp

from tests.engine.apache_kafka import PASSWORD, USER, Kafka, kafka
from tests.engine.conftest import BIN, ROOT, run
from tests.engine.ingesting import Project, project
from tests.engine.registry import registry
from tests.engine.test_how_to import BLOCK
from tests.engine.test_stream_schemas import record

__all__ = ["kafka", "project"]

TARN = [sys.executable, "-c", "from tarn.cli import main; main()"]
_NUMBERS = count()
_SECONDS = 60


class Shop:
    """A project that reads one topic, which no other test has."""

    def __init__(self, project: Project, kafka: Kafka, partitions: int = 2) -> None:
        self.project, self.kafka = project, kafka
        self.topic = f"orders.{next(_NUMBERS)}"
        kafka.create(self.topic, partitions)
        self.declare(kafka.address)

    def declare(self, address: str, options: Mapping[str, str] | None = None, **more: Any) -> None:
        connection = {"bootstrap_servers": address, "options": dict(options or {}), **more}
        format = more.pop("format", "json")
        connection.pop("format", None)
        self.project.declare(
            "shop",
            "kafka",
            json.dumps(connection),
            f"  orders:\n    topic: {self.topic}\n    format: {{type: {format}}}\n"
            "    commit_every: 200ms\n    columns: {order_id: bigint, amount: 'decimal(12,2)'}",
        )

    def send(self, *values: bytes, partition: int = -1) -> None:
        """Each value once; returns when the broker has them all."""
        settings = {"bootstrap.servers": self.kafka.address, "enable.idempotence": True}
        producer = Producer({**settings, "log_level": 0})
        for value in values:
            producer.produce(self.topic, value, partition=partition)
        assert producer.flush(_SECONDS) == 0

    def once(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TARN, "stream", "shop", "--once", *more],
            cwd=self.project.path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def landed(self) -> None:
        done = self.once()
        assert done.returncode == 0, done.stdout + done.stderr

    def refused(self) -> str:
        done = self.once()
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    @contextmanager
    def streaming(self, work: str = ".tarn") -> Iterator[subprocess.Popen[bytes]]:
        """`tarn stream`, which ends well when it is told to stop."""
        with (self.project.path / "log").open("ab") as log:
            process = subprocess.Popen(
                [*TARN, "stream", "shop"],
                cwd=self.project.path,
                stdout=log,
                stderr=log,
                env={**os.environ, "TARN_WORK": work},
            )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(_SECONDS) == 0, self.log
        finally:
            process.kill()
            process.wait()

    @property
    def log(self) -> str:
        return (self.project.path / "log").read_text()[-3000:]

    def ids(self) -> list[int]:
        found = self.project.lake.table("raw_shop.orders")
        rows = found.to_pyarrow_table(columns=["order_id"]) if found else None
        return sorted(rows["order_id"].to_pylist()) if rows else []

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for it."""
        last = time.monotonic() + _SECONDS
        while not holds():
            assert time.monotonic() < last, f"{len(self.ids())} rows; {self.log}"
            time.sleep(0.1)


@pytest.fixture
def shop(project: Project, kafka: Kafka) -> Shop:
    return Shop(project, kafka)


def orders(ids: Sequence[int]) -> list[bytes]:
    return [json.dumps({"order_id": i, "amount": i / 100}).encode() for i in ids]


@pytest.mark.parametrize("listener", ["plain", "sasl", "tls"])
def test_each_way_to_connect(shop: Shop, listener: str) -> None:
    kafka = shop.kafka
    scram = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": USER,
        "sasl.password": "${KAFKA_PASSWORD}",
    }
    tls = {"security.protocol": "SSL", "ssl.ca.location": str(kafka.ca_file)}
    ways: dict[str, tuple[str, dict[str, str]]] = {
        "plain": (kafka.address, {}),
        "sasl": (kafka.sasl, scram),
        "tls": (kafka.tls, tls),
    }
    shop.declare(*ways[listener])
    shop.send(*orders(range(100)))
    secrets = shop.project.path / "secrets.env"
    secrets.write_text(f"KAFKA_PASSWORD={PASSWORD}\n")
    shop.landed()
    assert shop.ids() == list(range(100))
    if listener == "sasl":
        secrets.write_text("KAFKA_PASSWORD=wrong-one\n")
        told = shop.refused()
        assert "credentials" in told
        assert "wrong-one" not in told


def test_a_value_of_another_type_takes_out_its_row_alone(shop: Shop) -> None:
    first = [b'{"order_id": %d, "speed": %d.5, "at": {"x": 1}}' % (i, i) for i in range(20)]
    first[0] = b'{"order_id": 0, "speed": "fast"}'
    shop.send(*first, partition=0)
    shop.landed()
    assert shop.project.types("raw_shop.orders")["speed"] == "double"
    assert shop.ids() == list(range(1, 20))
    later = [
        b'{"order_id": 20, "speed": 7}',
        b'{"order_id": 21, "speed": "slow", "at": {"x": "y"}}',
    ]
    shop.send(*later, b'{"order_id": 22, "amount": 0.1}', partition=0)
    shop.landed()
    assert shop.ids() == [*range(1, 21), 22]
    told = [row["_reason"] for row in shop.project.rows("quarantine_shop.orders", "_reason")]
    assert "speed: 'fast' is not double" in told
    assert "speed: 'slow' is not double; at__x: 'y' is not bigint" in told


def test_avro_through_a_registry(shop: Shop) -> None:
    with registry() as schemas:
        client = SchemaRegistryClient({"url": schemas.url})
        where = SerializationContext(shop.topic, MessageField.VALUE)
        fields = [{"name": "order_id", "type": "long"}, {"name": "amount", "type": "string"}]
        told = json.dumps({"type": "record", "name": "Order", "fields": fields})
        avro = AvroSerializer(client, told)
        known = {"schema_registry": {"url": schemas.url}}
        shop.declare(shop.kafka.address, format="avro", **known)
        values = [avro({"order_id": i, "amount": f"{i}.10"}, where) for i in range(10)]
        shop.send(*(value for value in values if value), b"rubbish", partition=0)
        shop.landed()
        assert shop.ids() == list(range(10))
        reasons = shop.project.rows("quarantine_shop.orders", "_reason, _row")
        assert "number of a schema" in reasons[0]["_reason"]

        schemas.is_away = True
        more = avro({"order_id": 10, "amount": "1.00"}, where)
        assert more is not None
        shop.send(more, partition=0)
        assert "does not give schemas" in shop.refused()
        assert len(shop.ids()) == 10
        schemas.is_away = False
        shop.landed()
        assert shop.ids() == list(range(11))
        assert len(shop.project.rows("quarantine_shop.orders")) == 1


def test_protobuf_through_a_registry(shop: Shop) -> None:
    with registry() as schemas:
        client = SchemaRegistryClient({"url": schemas.url})
        serialize = ProtobufSerializer(Timestamp, client, {"use.deprecated.format": False})
        where = SerializationContext(shop.topic, MessageField.VALUE)
        values = [serialize(Timestamp(seconds=2**40 + i), where) for i in range(3)]
        known = {"schema_registry": {"url": schemas.url}}
        shop.declare(shop.kafka.address, format="protobuf", **known)
        shop.send(*(value for value in values if value), b"rubbish", partition=0)
        shop.landed()
    rows = shop.project.rows("raw_shop.orders", "seconds, nanos, _offset")
    assert rows == [{"seconds": 2**40 + i, "nanos": 0, "_offset": i} for i in range(3)]
    assert len(shop.project.rows("quarantine_shop.orders")) == 1


def test_a_broker_that_stops_and_comes_back(shop: Shop) -> None:
    shop.send(*orders(range(500)))
    with shop.streaming():
        shop.until(lambda: len(shop.ids()) == 500)
        shop.kafka.stop()
        time.sleep(1)
        shop.kafka.start()
        shop.send(*orders(range(500, 1000)))
        shop.until(lambda: len(shop.ids()) >= 1000)
        shop.kafka.kill()
        shop.kafka.start()
        shop.send(*orders(range(1000, 1500)))
        shop.until(lambda: len(shop.ids()) >= 1500)
    assert shop.ids() == list(range(1500))


def test_messages_that_expired_are_missed_loudly(shop: Shop) -> None:
    shop.send(*orders(range(5)), partition=0)
    shop.landed()
    shop.send(*orders(range(5, 10)), partition=0)
    shop.kafka.expire(shop.topic, 0, before=8)
    told = shop.refused()
    assert f"{shop.topic}-0: offset 5 comes next, and the broker has 8 to 10" in told
    assert shop.ids() == list(range(5))
    assert shop.once("--accept-gap").returncode == 0
    assert shop.ids() == [0, 1, 2, 3, 4, 8, 9]
    shop.landed()


@pytest.mark.parametrize("messages", [3, 30])
def test_a_topic_that_was_made_anew_is_told(shop: Shop, messages: int) -> None:
    shop.send(*orders(range(10)), partition=0)
    shop.landed()
    shop.kafka.delete(shop.topic)
    shop.kafka.create(shop.topic, 2)
    again = range(100, 100 + messages)
    shop.send(*orders(again), partition=0)
    told = f"{shop.topic}-0: offset 10 comes next, and the broker has 0 to {messages}"
    assert told in shop.refused()
    assert shop.ids() == list(range(10))
    assert shop.once("--accept-gap").returncode == 0
    assert shop.ids() == [*range(10), *again]
    shop.landed()
    assert shop.ids() == [*range(10), *again]


def test_a_table_that_gets_another_topic_reads_that(shop: Shop) -> None:
    shop.send(*orders(range(10)))
    shop.landed()
    other = Shop(shop.project, shop.kafka)
    other.send(*orders(range(10, 20)))
    other.landed()
    assert shop.ids() == list(range(20))


def test_partitions_that_are_added_are_read_too(shop: Shop) -> None:
    shop.send(*orders(range(10)), partition=0)
    with shop.streaming():
        shop.until(lambda: len(shop.ids()) == 10)
        shop.kafka.grow(shop.topic, 4)
        shop.send(*orders(range(10, 20)), partition=3)
        shop.until(lambda: len(shop.ids()) >= 20)
    assert shop.ids() == list(range(20))


def test_two_consumers_share_partitions_and_none_is_read_twice(
    project: Project, kafka: Kafka
) -> None:
    shop = Shop(project, kafka, partitions=6)
    shop.send(*orders(range(1000)))
    with shop.streaming():
        shop.until(lambda: len(shop.ids()) >= 1000)
        with shop.streaming(work=".other"):
            for start in range(1000, 4000, 500):
                shop.send(*orders(range(start, start + 500)))
                time.sleep(0.5)
            shop.until(lambda: len(shop.ids()) >= 4000)
        # What the second had is given back when the broker misses it.
        shop.send(*orders(range(4000, 4600)))
        shop.until(lambda: len(shop.ids()) >= 4600)
    assert shop.ids() == list(range(4600))


def test_the_page_can_be_followed(project: Project, kafka: Kafka) -> None:
    with registry() as schemas:
        client = SchemaRegistryClient({"url": schemas.url})
        where = SerializationContext("orders", MessageField.VALUE)
        told = record("Order", event_id="string", order_id="long")
        avro = AvroSerializer(client, json.dumps(told))
        protobuf = ProtobufSerializer(Timestamp, client, {"use.deprecated.format": False})
        click = b'{"page": {"type": "home"}, "occurred_at": "2017-12-31T10:00:00.000Z"}'
        values = {
            "clicks": [click, b"{broken"],
            "orders": [avro({"event_id": "a", "order_id": 1}, where)] * 2,
            "payments": [protobuf(Timestamp(seconds=5), where)],
        }
        producer = Producer({"bootstrap.servers": kafka.address, "log_level": 0})
        for topic, messages in values.items():
            kafka.create(topic)
            for value in messages:
                producer.produce(topic, value)
        assert producer.flush(_SECONDS) == 0
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        broker = {"KAFKA": kafka.address, "SCHEMA_REGISTRY": schemas.url}
        env = {**os.environ, "PATH": path, **broker}
        said = list(_followed(project.path, env))
    assert "no JSON" in said[-1]
    rows = {table: len(project.rows(f"raw_web_shop.{table}")) for table in values}
    assert rows == {"clicks": 1, "orders": 1, "payments": 1}
    assert project.types("raw_web_shop.clicks")["page__type"] == "string"


def _followed(folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Write the page's files and run its commands; what they said."""
    for block in BLOCK.finditer((ROOT / "docs/how-to/read-messages.md").read_text()):
        if block["path"]:
            (folder / block["path"]).write_text(block["text"])
        elif block["language"] == "shell":
            done = run(folder, env, "sh", "-ec", block["text"])
            assert done.returncode == 0, done.stdout + done.stderr
            yield done.stdout
