"""Pub/Sub servers for tests: Google's own in memory, which Go builds, and the demo's."""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from google.pubsub_v1 import PubsubMessage, PullRequest
from google.pubsub_v1.services.publisher import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from demo.streams.pubsub_server import serve

SERVERS = ("google", "demo")
PROJECT = "shop"
_SOURCE = Path(__file__).parent / "pubsub_server"
_AT_ONCE = 1_000


class Broker:
    """A server, as those who publish and set up see it."""

    def __init__(self, address: str) -> None:
        self.address = address
        publishing = PublisherGrpcTransport(channel=grpc.insecure_channel(address))
        subscribing = SubscriberGrpcTransport(channel=grpc.insecure_channel(address))
        self.publisher = PublisherClient(transport=publishing)
        self.subscriber = SubscriberClient(transport=subscribing)

    def make(self, name: str, **options: Any) -> None:
        """A topic and a subscription to it, both of that name."""
        topic = f"projects/{PROJECT}/topics/{name}"
        self.publisher.create_topic(name=topic)
        made = {"name": f"projects/{PROJECT}/subscriptions/{name}", "topic": topic, **options}
        self.subscriber.create_subscription(request=made)

    def publish(self, topic: str, messages: Sequence[bytes], key: str = "") -> list[str]:
        """The ids of the messages, which bear an ordering key if one is given."""
        ids: list[str] = []
        for start in range(0, len(messages), _AT_ONCE):
            some = messages[start : start + _AT_ONCE]
            answer = self.publisher.publish(
                topic=f"projects/{PROJECT}/topics/{topic}",
                messages=[PubsubMessage(data=each, ordering_key=key) for each in some],
            )
            ids += answer.message_ids
        return ids

    def waiting(self, name: str) -> list[str]:
        """Ids of what another subscriber would get now; it is leased to it."""
        subscription, ids = f"projects/{PROJECT}/subscriptions/{name}", list[str]()
        request = PullRequest(subscription=subscription, max_messages=1000, return_immediately=True)
        # The client would warn of what is no good in production.
        pull: Any = self.subscriber.transport.pull
        while received := pull(request).received_messages:
            ids += [each.message.message_id for each in received]
        return ids

    def close(self) -> None:
        self.publisher.transport.close()  # type: ignore[no-untyped-call]
        self.subscriber.transport.close()  # type: ignore[no-untyped-call]


@contextmanager
def broker(kind: str, port: int = 0) -> Iterator[Broker]:
    """An empty server of a kind, while it runs."""
    with _google(port) if kind == "google" else serve(port) as address:
        found = Broker(address)
        try:
            yield found
        finally:
            found.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _google(port: int) -> Iterator[str]:
    command = [_program(), f"127.0.0.1:{port or free_port()}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@cache
def _program() -> str:
    """Google's server; what Go compiles is kept in its own cache, so only the first time takes."""
    if shutil.which("go") is None:
        pytest.skip("no Go, with which Google's Pub/Sub server is built: install Go 1.26")
    program = f"{_folder().name}/server"
    command = ["go", "build", "-o", program, "."]
    done = subprocess.run(command, cwd=_SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@cache
def _folder() -> TemporaryDirectory[str]:
    """Goes with the process."""
    return TemporaryDirectory(prefix="tarn-pubsub-")
