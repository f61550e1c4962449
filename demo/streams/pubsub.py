"""The Pub/Sub that tells who has joined."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from google.pubsub_v1 import PublisherClient, PubsubMessage, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from demo.listening import listen
from demo.streams import pubsub_server
from demo.streams.messages import TIMEOUT_SECONDS, Message, burst

PORT = 8806
PROJECT, TOPIC, SUBSCRIPTION = "grocer", "sign_ups", "lakehouse"
_TOPIC = f"projects/{PROJECT}/topics/{TOPIC}"
_SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/{SUBSCRIPTION}"


@contextmanager
def serve(run: Path, any_port: bool) -> Iterator[str]:
    """Run the server in threads; give its address."""
    if not any_port:
        listen(PORT, any_port).close()
    with pubsub_server.serve(0 if any_port else PORT) as address:
        _fill(address, burst(run, TOPIC))
        yield address


def _fill(address: str, messages: list[Message]) -> None:
    """Make topic and subscription, and publish."""
    sender = Sender(address)
    sender.client.create_topic(name=_TOPIC)
    with grpc.insecure_channel(address) as channel:
        reader = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        reader.create_subscription(name=_SUBSCRIPTION, topic=_TOPIC)
    sender.send(messages)


class Sender:
    """Sends to a server by its address."""

    def __init__(self, address: str) -> None:
        transport = PublisherGrpcTransport(channel=grpc.insecure_channel(address))
        self.client = PublisherClient(transport=transport)

    def send(self, messages: list[Message]) -> None:
        for start in range(0, len(messages), 1000):
            data = [
                PubsubMessage(data=value.encode()) for _, _, value in messages[start : start + 1000]
            ]
            self.client.publish(topic=_TOPIC, messages=data, retry=None, timeout=TIMEOUT_SECONDS)
