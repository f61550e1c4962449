"""A mosquitto of our own for tests: its own folder and ports, restartable, gone afterwards."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion

USER, PASSWORD = "tarn", "p@ss/word"
_ACCOUNT = "mosquitto"
_PROGRAM = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class Broker:
    """A mosquitto with persistence, by password, and by TLS and web sockets too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port, self.ws_port = _free_ports(3)
        self.process: subprocess.Popen[bytes] | None = None
        _certificates(folder)
        password = folder / "passwords"
        subprocess.run(
            ["mosquitto_passwd", "-b", "-c", password, USER, PASSWORD],
            check=True,
            capture_output=True,
        )
        (folder / "mosquitto.conf").write_text(
            f"persistence true\npersistence_location {folder}/\nautosave_interval 1\n"
            f"allow_anonymous false\npassword_file {password}\nmax_queued_messages 0\n"
            f"listener {self.port} 127.0.0.1\n"
            f"listener {self.tls_port} 127.0.0.1\ncafile {folder}/ca.pem\n"
            f"certfile {folder}/server.pem\nkeyfile {folder}/server.key\nrequire_certificate true\n"
            f"listener {self.ws_port} 127.0.0.1\nprotocol websockets\n"
        )
        for path in (folder, *folder.iterdir()):
            _give_away(path)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert _PROGRAM is not None
        log = (self.folder / "log").open("a")
        command = [_PROGRAM, "-c", str(self.folder / "mosquitto.conf")]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError("mosquitto does not answer")

    def stop(self, *, forget: bool = False) -> None:
        """Let it keep what it has, or forget all."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)
        if forget:
            (self.folder / "mosquitto.db").unlink()

    def publish(
        self, messages: Sequence[tuple[str, bytes]], qos: int = 1, *, retain: bool = False
    ) -> None:
        """Send messages, and wait until the broker has them."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.username_pw_set(USER, PASSWORD)
        client.max_queued_messages_set(0)
        client.max_inflight_messages_set(200)
        connected = Event()
        client.on_connect = lambda *_: connected.set()
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        assert connected.wait(10)
        sent: list[Any] = [
            client.publish(topic, payload, qos, retain=retain) for topic, payload in messages
        ]
        for each in sent:
            each.wait_for_publish(30)
        client.disconnect()
        client.loop_stop()


@contextmanager
def mosquitto_broker() -> Iterator[Broker]:
    if _PROGRAM is None:
        pytest.skip("no MQTT broker: install the package mosquitto")
    with TemporaryDirectory(prefix="tarn-mosquitto-") as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            yield broker
        finally:
            assert broker.process is not None
            broker.process.kill()
            broker.process.wait(10)


@pytest.fixture
def mosquitto() -> Iterator[Broker]:
    with mosquitto_broker() as broker:
        yield broker


def _free_ports(many: int) -> list[int]:
    sockets = [socket.socket() for _ in range(many)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _give_away(path: Path) -> None:
    """mosquitto that is started by root works as an account of its own."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(_ACCOUNT)
        os.chown(path, account.pw_uid, account.pw_gid)
        path.chmod(0o755 if path.is_dir() else 0o644)


def _certificates(folder: Path) -> None:
    """An authority, and what it signed: the broker's certificate and a client's."""
    authority = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "An authority for a test")])
    _write(folder, "ca", authority, _signed(name, name, authority, authority, is_authority=True))
    for who in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        its = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, who)])
        _write(folder, who, key, _signed(its, name, key, authority, is_authority=False))


def _signed(subject: Any, issuer: Any, key: Any, by: Any, *, is_authority: bool) -> Any:
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .sign(by, hashes.SHA256())
    )


def _write(folder: Path, name: str, key: Any, certificate: Any) -> None:
    pem = serialization.Encoding.PEM
    private = serialization.PrivateFormat.PKCS8
    plain = serialization.NoEncryption()
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, private, plain))
