"""The web shop's Kafka: librdkafka's own mock cluster, in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Producer

from demo.streams.messages import TIMEOUT_SECONDS, Message, burst

TOPICS = ("web.clicks", "web.orders")


@contextmanager
def serve(run: Path, any_port: bool) -> Iterator[str]:
    """Run a broker, whose port is always any one; give its address."""
    producer = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    (broker,) = producer.list_topics(timeout=TIMEOUT_SECONDS).brokers.values()
    for topic in TOPICS:
        producer.list_topics(topic, timeout=TIMEOUT_SECONDS)  # makes it
    _send(producer, burst(run, *TOPICS))
    yield f"{broker.host}:{broker.port}"


class Sender:
    """Sends to a broker by its address."""

    def __init__(self, address: str) -> None:
        self.producer = Producer({"bootstrap.servers": address, "log_level": 3})

    def send(self, messages: list[Message]) -> None:
        _send(self.producer, messages)


def _send(producer: Producer, messages: list[Message]) -> None:
    for topic, key, value in messages:
        producer.produce(topic, value, key)
    if producer.flush(TIMEOUT_SECONDS):
        raise ConnectionError("Kafka does not take what is sent to it")
