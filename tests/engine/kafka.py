"""librdkafka's mock cluster in a process of its own: a broker in memory, with four partitions a
topic. It is no evidence of conformance; apache_kafka.py has the real one."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Producer

_BROKER = """
import sys
from confluent_kafka import Producer
producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": ""})
(broker,) = producer.list_topics(timeout=10).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
sys.stdin.read()
"""


@contextmanager
def broker() -> Iterator[str]:
    """Its address."""
    with process() as (address, _):
        yield address


@contextmanager
def process() -> Iterator[tuple[str, int]]:
    """Its address, and the number of its process."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _BROKER], stdin=pipe, stdout=pipe) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().decode().strip(), server.pid
        finally:
            server.stdin.close()


class Topic:
    """A topic that is written to."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self._producer = Producer({"bootstrap.servers": address, "linger.ms": 20})

    def send(self, *values: bytes, partition: int = 0, at: Mapping[str, Any] | None = None) -> None:
        """Return when the broker has them."""
        for value in values:
            while True:
                try:
                    self._producer.produce(self.name, value, partition=partition, **(at or {}))
                    break
                except BufferError:
                    self._producer.poll(0.1)
        assert self._producer.flush(30) == 0
