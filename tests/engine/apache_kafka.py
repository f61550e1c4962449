"""An Apache Kafka for tests: one broker in KRaft mode, from the jars of Maven Central.

The jars are kept below the user's cache, and fetched there by Maven once. The broker listens
without protection, with SASL (SCRAM-SHA-512) and with TLS.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

VERSION = "4.1.0"
USER, PASSWORD = "tarn", "s3cret-of-tarn"
_STARTUP_SECONDS = 60
_SECONDS = 20
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tarn</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
    <version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""
_JAAS = """
listener.name.sasl.scram-sha-512.sasl.jaas.config=\\
 org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


@pytest.fixture(scope="session")
def kafka() -> Iterator["Kafka"]:
    """A broker."""
    if reason := _missing():
        pytest.skip(reason)
    with running_kafka() as found:
        yield found


@contextmanager
def running_kafka() -> Iterator["Kafka"]:
    """A broker, for as long as it takes."""
    with TemporaryDirectory(prefix="tarn-kafka-") as folder:
        broker = Kafka(Path(folder))
        broker.prepare()
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()


@dataclass
class Kafka:
    """A broker in a folder of its own."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: _free_ports(4))
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def sasl(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def tls(self) -> str:
        return f"127.0.0.1:{self.ports[2]}"

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    @cached_property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def prepare(self) -> None:
        """Write certificate, settings and an empty log."""
        _certificates(self.folder)
        (self.folder / "server.properties").write_text(self._settings())
        user = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
        settings = str(self.folder / "server.properties")
        format_ = ["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg"]
        done = subprocess.run(
            [*_java(), *format_, "-c", settings, "--add-scram", user],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not done.returncode, done.stdout + done.stderr

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_java(), "kafka.Kafka", str(self.folder / "server.properties")],
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + _STARTUP_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
            try:
                self.admin.list_topics(timeout=1)
            except KafkaException:
                continue
            return
        raise AssertionError((self.folder / "log").read_text()[-3000:])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(_SECONDS)
            self.process = None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(_SECONDS)
        self.process = None

    def create(self, topic: str, partitions: int = 1, **settings: str) -> None:
        new = NewTopic(topic, partitions, 1, config=dict(settings))
        self.admin.create_topics([new])[topic].result(_SECONDS)

    def delete(self, topic: str) -> None:
        self.admin.delete_topics([topic])[topic].result(_SECONDS)
        while topic in self.admin.list_topics(timeout=_SECONDS).topics:
            time.sleep(0.1)

    def grow(self, topic: str, partitions: int) -> None:
        self.admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(_SECONDS)

    def expire(self, topic: str, partition: int, before: int) -> None:
        """Messages with lower offsets are gone, as when they are too old."""
        place = TopicPartition(topic, partition, before)
        for each in self.admin.delete_records([place]).values():
            each.result(_SECONDS)

    def _settings(self) -> str:
        plain, sasl, tls, controller = self.ports
        names = {"PLAIN": plain, "SASL": sasl, "TLS": tls}
        listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in names.items())
        return f"""
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
listeners={listeners},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={listeners}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
ssl.keystore.location={self.folder}/broker.p12
ssl.keystore.type=PKCS12
ssl.keystore.password={PASSWORD}
ssl.key.password={PASSWORD}
log.dirs={self.folder}/data
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
log.retention.check.interval.ms=1000
{_JAAS}"""


def _java() -> list[str]:
    return [
        "java", "-Xmx384m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{_jars()}/*",
    ]  # fmt: skip


def _jars() -> Path:
    cache_folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_folder) / "tarn-tests" / f"kafka-{VERSION}"


@cache
def _missing() -> str | None:
    """Why there is no broker."""
    for tool, package in (("java", "openjdk-17-jre-headless"), ("openssl", "openssl")):
        if shutil.which(tool) is None:
            return f"no Apache Kafka: install the package {package}"
    if _jars().exists():
        return None
    if shutil.which("mvn") is None:
        return "no Apache Kafka: install the package maven, which fetches it"
    return _fetched()


def _fetched() -> str | None:
    """Fetch the jars; returns why that failed."""
    with TemporaryDirectory(prefix="tarn-kafka-jars-") as folder:
        (Path(folder) / "pom.xml").write_text(_POM)
        wanted = ["dependency:copy-dependencies", "-DincludeScope=runtime"]
        done = subprocess.run(
            ["mvn", "-q", "-B", *wanted, "-DoutputDirectory=jars"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            told = next((line for line in done.stdout.splitlines() if "ERROR" in line), "")
            return f"no Apache Kafka: Maven could not fetch it: {told}"
        draft = _jars().with_name(f"{_jars().name}.{os.getpid()}")
        shutil.copytree(Path(folder) / "jars", draft)
    try:
        draft.rename(_jars())
    except OSError:
        # Another run was quicker.
        shutil.rmtree(draft)
    return None


def _certificates(folder: Path) -> None:
    """An authority (ca.pem) and the broker's certificate (broker.p12)."""
    name = "/CN=127.0.0.1"
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    _openssl(folder, *new, "-x509", "-days", "2", "-subj", "/CN=tarn tests", "-keyout", "ca.key",
             "-out", "ca.pem")  # fmt: skip
    _openssl(folder, *new, "-subj", name, "-keyout", "broker.key", "-out", "broker.csr")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl(folder, "x509", "-req", "-in", "broker.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
             "-CAcreateserial", "-days", "2", "-extfile", "names",
             "-out", "broker.pem")  # fmt: skip
    _openssl(folder, "pkcs12", "-export", "-in", "broker.pem", "-inkey", "broker.key",
             "-passout", f"pass:{PASSWORD}", "-out", "broker.p12")  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
