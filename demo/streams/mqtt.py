"""The vans' MQTT: amqtt's broker, for whoever has the password.

MQTT hands messages on and forgets them. A reader that has been here under its name, and has asked
to be remembered, gets what came while it was away; so the broker remembers the lakehouse's from
the start.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from threading import Thread
from urllib.parse import urlsplit

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter  # type: ignore[import-untyped]
from amqtt.broker import Broker, BrokerContext  # type: ignore[import-untyped]
from amqtt.plugins.base import BaseAuthPlugin  # type: ignore[import-untyped]
from amqtt.session import Session  # type: ignore[import-untyped]
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from demo import making
from demo.listening import listen
from demo.streams.messages import TIMEOUT_SECONDS, Message, burst

PORT = 8807
TOPIC = "vans"
READER, FILTER = "tarn-vans", "vans/+/position"
QOS = 1


class Password(BaseAuthPlugin):  # type: ignore[misc]
    """Lets in who knows the password."""

    @dataclass
    class Config:
        password: str = ""

    async def authenticate(self, *, session: Session) -> bool:
        sent = (session.password or "").encode()
        return secrets.compare_digest(sent, self.config.password.encode())


class _Broker(Broker):  # type: ignore[misc]
    """amqtt marks what waited for a reader as retained, which MQTT does only for what had been
    sent before anybody asked; and readers that know the topic leave that out."""

    async def _publish_session_retained_messages(self, session: Session) -> None:
        handler, waiting = self._get_handler(session), session.retained_messages
        messages = [waiting.get_nowait() for _ in range(waiting.qsize())]
        sending = [handler.mqtt_publish(m.topic, m.data, m.qos, retain=False) for m in messages]
        await asyncio.gather(*sending, return_exceptions=True)


@contextmanager
def serve(run: Path, any_port: bool) -> Iterator[str]:
    """Run the broker in a thread that ends with the process; give its address."""
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    listener = listen(PORT, any_port)
    host, port = listener.getsockname()
    waiting = burst(run, TOPIC)
    starting = _started(listener, making.token(run, TOPIC), waiting)
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(starting, loop).result()
    yield f"mqtt://{host}:{port}"


async def _started(listener: socket, password: str, waiting: list[Message]) -> None:
    plugin = f"{Password.__module__}.{Password.__qualname__}"
    # It would open a port by number; this one is ours already.
    listeners = {"default": {"type": "external", "bind": "of ours"}}
    broker = _Broker({"listeners": listeners, "plugins": {plugin: {"password": password}}})
    await broker.start()
    inside = BrokerContext(broker)
    await inside.add_subscription(READER, FILTER, QOS)
    for _, van, value in waiting:
        await inside.broadcast_message(f"vans/{van}/position", value.encode(), QOS)
    reader = inside.get_session(READER)
    while reader and reader.retained_messages.qsize() < len(waiting):
        await asyncio.sleep(0.01)

    async def connected(reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        here = StreamReaderAdapter(reads), StreamWriterAdapter(writes)
        await broker.external_connected(*here, "default")

    await asyncio.start_server(connected, sock=listener)


class Sender:
    """Sends to a broker by its address."""

    def __init__(self, address: str, password: str) -> None:
        url = urlsplit(address)
        self.client = Client(CallbackAPIVersion.VERSION2)
        self.client.username_pw_set(TOPIC, password)
        self.client.connect(url.hostname or "", url.port or 0)
        self.client.loop_start()

    def send(self, messages: list[Message]) -> None:
        sent = [
            self.client.publish(f"vans/{van}/position", value, QOS) for _, van, value in messages
        ]
        until = time.monotonic() + TIMEOUT_SECONDS
        for each in sent:
            each.wait_for_publish(max(until - time.monotonic(), 0))
            if not each.is_published():
                raise ConnectionError("MQTT does not take what is sent to it")
