"""A client of an MQTT broker, as a connection declares it."""

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tarn.errors import TarnError
from tarn.ingestion.declarations.mqtt import MqttConnection
from tarn.settings import Settings

NEWEST = 5
"""Version of MQTT."""
WINDOW = 65_535
"""Messages that a broker sends before the first of them is acknowledged; MQTT has no greater."""
_SESSION_SECONDS = 7 * 24 * 3600
_KEEPALIVE_SECONDS = 30
_SLOWEST_RETRY_SECONDS = 15
_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


class MqttClient(Client):
    """paho's client, which can say why it does not reach the broker."""

    failure: OSError | None = None

    def reconnect(self) -> MQTTErrorCode:
        try:
            code = super().reconnect()
        except OSError as error:
            self.failure = error
            raise
        self.failure = None
        return code


def mqtt_client(
    connection: MqttConnection,
    name: str,
    protocol: int | str,
    where: str,
    home: Settings,
    *,
    is_kept: bool,
) -> MqttClient:
    """Not connected yet. What is not acknowledged comes again to a client of the same name if it
    is kept. Raises TarnError for certificates that cannot be read."""
    scheme = urlsplit(connection.url).scheme
    is_newest = protocol == NEWEST
    client = MqttClient(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        clean_session=None if is_newest else not is_kept,
        protocol=MQTTv5 if is_newest else MQTTv311,
        transport="websockets" if scheme.startswith("ws") else "tcp",
        manual_ack=True,
    )
    if connection.username:
        client.username_pw_set(connection.username, connection.password)
    if scheme in ("mqtts", "wss"):
        client.tls_set_context(_tls(connection, where, home.project_dir))
    if scheme.startswith("ws"):
        client.ws_set_options(urlsplit(connection.url).path or "/mqtt")
    client.reconnect_delay_set(1, _SLOWEST_RETRY_SECONDS)
    return client


def begin(client: MqttClient, connection: MqttConnection, *, is_kept: bool) -> None:
    """Connect in a thread of the client's own, and again whenever it is needed."""
    parts = urlsplit(connection.url)
    host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
    if client.protocol != MQTTv5:
        client.connect_async(host, port, _KEEPALIVE_SECONDS)
    else:
        wishes: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        wishes.ReceiveMaximum = WINDOW
        wishes.SessionExpiryInterval = _SESSION_SECONDS if is_kept else 0
        client.connect_async(
            host, port, _KEEPALIVE_SECONDS, clean_start=not is_kept, properties=wishes
        )
    client.loop_start()


def _tls(connection: MqttConnection, where: str, folder: Path) -> ssl.SSLContext:
    named = (connection.ca_file, connection.certificate_file, connection.key_file)
    authority, certificate, key = (folder / name if name else None for name in named)
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        files = ", ".join(name for name in named if name)
        raise TarnError(f"certificates cannot be read: {error}", where, f"mend {files}") from error
    return context
