"""MQTT, read through the transport: a mosquitto of our own."""

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest

from tarn.errors import TarnError
from tarn.ingestion.declarations import declare
from tarn.ingestion.streams import Batch
from tarn.ingestion.streams.transports.mqtt import Mqtt
from tarn.settings import settings
from tarn.storage.writer import write
from tests.engine.ingesting import Project, project
from tests.engine.killing import stream_once
from tests.engine.mosquitto import PASSWORD, USER, Broker, mosquitto

__all__ = ["mosquitto", "project"]

ENTRY = f"username: {USER}, password: '{PASSWORD}'"
VERSIONS = pytest.mark.parametrize("version", ["5", '"3.1.1"'])


def transport(project: Project, broker: Broker, version: str = "5", url: str = "") -> Mqtt:
    connection = f"{{url: '{url or broker.url}', {ENTRY}, protocol: {version}}}"
    table = "{topic: vans/+/position, primary_key: [van_id, sequence]}"
    project.declare("vans", "mqtt", connection, f"  positions: {table}")
    return opened(project)


def opened(project: Project) -> Mqtt:
    wanted = declare(project.path / "ingestion/vans.yml")
    return Mqtt(wanted.resolved(settings()), settings())


def begin(mqtt: Mqtt) -> None:
    """Open, and wait until the broker knows the session."""
    mqtt.open(lambda place: None)
    begun(mqtt)


def begun(mqtt: Mqtt) -> None:
    until(mqtt, lambda: mqtt._session > 0 and mqtt.trouble is None)
    assert mqtt.read(0.3, 1) == []


def until(mqtt: Mqtt, is_true: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, mqtt.trouble
        assert mqtt.read(0.05, 1) == []


def arriving(mqtt: Mqtt, most: int, seconds: float = 20) -> list[Batch]:
    """What comes until there are so many; no more may come then."""
    batches: list[Batch] = []
    deadline = time.monotonic() + seconds
    while len(values(batches)) < most and time.monotonic() < deadline:
        batches += mqtt.read(0.1, 1000)
    return batches + mqtt.read(0.3, 1000)


def values(batches: Sequence[Batch]) -> list[bytes]:
    return [value for batch in batches for value in batch.values if value is not None]


def positions(begin: int, end: int) -> list[tuple[str, bytes]]:
    return [(f"vans/v{i % 3}/position", b"%d" % i) for i in range(begin, end)]


def payloads(begin: int, end: int) -> list[bytes]:
    return [payload for _, payload in positions(begin, end)]


@VERSIONS
def test_what_landed_never_comes_again_and_what_did_not_does(
    project: Project, mosquitto: Broker, version: str
) -> None:
    with closing(transport(project, mosquitto, version)) as mqtt:
        begin(mqtt)
        mosquitto.publish(positions(0, 12))
        found = arriving(mqtt, 12)
        assert sorted(values(found)) == sorted(payloads(0, 12))
        assert {batch.partition for batch in found} == {f"vans/v{i}/position" for i in range(3)}
        for batch in found:
            assert len(batch.values) == len(batch.offsets) == len(batch.sent_at)
            assert all(abs(at / 1e6 - time.time()) < 600 for at in batch.sent_at)
        mqtt.landed([batch for batch in found if batch.partition != "vans/v0/position"])
    with closing(opened(project)) as mqtt:
        again = arriving_after_open(mqtt, 4)
        assert sorted(values(again)) == sorted(payloads(0, 12)[::3])
        names = {offset for batch in found for offset in batch.offsets}
        assert names > {offset for batch in again for offset in batch.offsets}
        mqtt.landed(again)
    with closing(opened(project)) as mqtt:
        assert arriving_after_open(mqtt, 0) == []


def arriving_after_open(mqtt: Mqtt, most: int) -> list[Batch]:
    mqtt.open(lambda place: None)
    return arriving(mqtt, most) if most else arriving(mqtt, 1, 1.5)


@VERSIONS
def test_what_is_sent_while_nobody_reads_waits_at_the_broker(
    project: Project, mosquitto: Broker, version: str
) -> None:
    with closing(transport(project, mosquitto, version)) as mqtt:
        begin(mqtt)
    mosquitto.publish(positions(0, 1000))
    mosquitto.stop()
    mosquitto.start()
    found: list[bytes] = []
    with closing(opened(project)) as mqtt:
        mqtt.open(lambda place: None)
        deadline = time.monotonic() + 30
        while len(found) < 1000 and time.monotonic() < deadline:
            batches = mqtt.read(0.2, 1000)
            mqtt.landed(batches)
            found += values(batches)
    assert sorted(found) == sorted(payloads(0, 1000))


def test_ten_thousand_messages_come_before_the_first_has_landed(
    project: Project, mosquitto: Broker
) -> None:
    with closing(transport(project, mosquitto)) as mqtt:
        begin(mqtt)
        mosquitto.publish(positions(0, 10_000))
        found = arriving(mqtt, 10_000, 60)
        assert sorted(values(found)) == sorted(payloads(0, 10_000))
        for topic in ("vans/v0/position", "vans/v1/position"):
            of_topic = [value for each in found if each.partition == topic for value in each.values]
            assert of_topic == sorted(of_topic, key=lambda value: int(value or b""))
        mqtt.landed(found)
    with closing(opened(project)) as mqtt:
        assert arriving_after_open(mqtt, 0) == []


def test_an_older_broker_says_when_it_waits_for_messages_to_land(
    project: Project, mosquitto: Broker
) -> None:
    with closing(transport(project, mosquitto, '"3.1.1"')) as mqtt:
        begin(mqtt)
        mosquitto.publish(positions(0, 50))
        found = arriving(mqtt, 20)
        assert len(values(found)) == 20
        until(mqtt, lambda: mqtt.is_full)
        mqtt.landed(found)
        assert len(values(arriving(mqtt, 20))) >= 20


@VERSIONS
def test_a_broker_that_is_restarted_is_trouble_meanwhile_and_repeats_nothing_that_waits_here(
    project: Project, mosquitto: Broker, version: str
) -> None:
    with closing(transport(project, mosquitto, version)) as mqtt:
        begin(mqtt)
        mosquitto.publish(positions(0, 10))
        found = arriving(mqtt, 10)
        mosquitto.stop()
        until(mqtt, lambda: mqtt.trouble is not None)
        assert mosquitto.url in str(mqtt.trouble)
        mosquitto.start()
        until(mqtt, lambda: mqtt.trouble is None)
        mosquitto.publish(positions(10, 20))
        found += arriving(mqtt, 10)
        assert sorted(values(found)) == sorted(payloads(0, 20))
        mqtt.landed(found)
    with closing(opened(project)) as mqtt:
        assert arriving_after_open(mqtt, 0) == []


def test_a_broker_that_has_forgotten_the_session_is_told(
    project: Project, mosquitto: Broker
) -> None:
    with closing(transport(project, mosquitto)) as mqtt:
        begin(mqtt)
        mosquitto.stop(forget=True)
        mosquitto.start()
        until(mqtt, lambda: mqtt.trouble is None and gaps(mqtt))
        mosquitto.publish(positions(0, 10))
        assert len(values(arriving(mqtt, 10))) == 10
    rows = pa.table({"van_id": ["v0"]})
    write(project.lake, "raw_vans.positions", rows, mode="append")
    mosquitto.stop(forget=True)
    mosquitto.start()
    assert "vans.positions: the broker had forgotten tarn-vans: " in stream_once(project, "vans")
    lost = {"change": "lost", "verdict": "accepted"}
    noted = project.rows("tarn.drift", "table_name, column_name, change, verdict")
    assert noted == [{"table_name": "positions", "column_name": "vans/+/position", **lost}]


def gaps(mqtt: Mqtt) -> list[str]:
    return [what for _, what in mqtt.gaps() if "had forgotten tarn-vans" in what]


@VERSIONS
def test_of_two_clients_of_one_name_one_stops_and_the_other_reads_on(
    project: Project, mosquitto: Broker, version: str
) -> None:
    first = transport(project, mosquitto, version)
    with closing(first), closing(opened(project)) as second:
        begin(first)
        second.open(lambda place: None)
        with pytest.raises(TarnError, match=r"tarn-vans(?s:.)*its own client_id") as raised:
            quarrel(first, second)
        left = second if first._failure is raised.value else first
        until(left, lambda: left.trouble is None)
        mosquitto.publish(positions(0, 10))
        assert len(values(arriving(left, 10))) == 10


def quarrel(*transports: Mqtt) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for each in transports:
            each.read(0.1, 10)


@VERSIONS
def test_a_retained_message_comes_once(project: Project, mosquitto: Broker, version: str) -> None:
    mosquitto.publish([("vans/v0/position", b"kept")], retain=True)
    with closing(transport(project, mosquitto, version)) as mqtt:
        found = arriving_after_open(mqtt, 1)
        assert values(found) == [b"kept"]
        mqtt.landed(found)
    write(project.lake, "raw_vans.positions", pa.table({"van_id": ["v0"]}), mode="append")
    with closing(opened(project)) as mqtt:
        assert arriving_after_open(mqtt, 0) == []


def test_tls_with_certificates_of_both_sides(project: Project, mosquitto: Broker) -> None:
    folder, url = mosquitto.folder, f"mqtts://127.0.0.1:{mosquitto.tls_port}"
    table = "{topic: 'vans/#', primary_key: [van_id]}"
    files = f"certificate_file: {folder}/client.pem, key_file: {folder}/client.key"
    for ca, is_right in ((f", ca_file: {folder}/ca.pem", True), ("", False)):
        connection = f"{{url: '{url}', {ENTRY}, {files}{ca}}}"
        project.declare("vans", "mqtt", connection, f"  positions: {table}")
        with closing(opened(project)) as mqtt:
            mqtt.open(lambda place: None)
            if is_right:
                begun(mqtt)
                mosquitto.publish([("vans/1/x", b"1")])
                assert values(arriving(mqtt, 1)) == [b"1"]
            else:
                with pytest.raises(TarnError, match=r"(?s)certificate verify failed.*give ca_file"):
                    arriving(mqtt, 1)


def test_web_sockets(project: Project, mosquitto: Broker) -> None:
    url = f"ws://127.0.0.1:{mosquitto.ws_port}/mqtt"
    with closing(transport(project, mosquitto, url=url)) as mqtt:
        begin(mqtt)
        mosquitto.publish(positions(0, 10))
        assert len(values(arriving(mqtt, 10))) == 10


def test_a_wrong_password_stops_and_is_not_told(project: Project, mosquitto: Broker) -> None:
    connection = f"{{url: '{mosquitto.url}', username: {USER}, password: wr0ng-word}}"
    table = "{topic: 'vans/#', primary_key: [van_id]}"
    project.declare("vans", "mqtt", connection, f"  positions: {table}")
    with closing(opened(project)) as mqtt:
        mqtt.open(lambda place: None)
        with pytest.raises(TarnError, match=r"(?s)ingestion/vans.yml:5.*mend username") as raised:
            arriving(mqtt, 1)
        assert "wr0ng" not in str(raised.value)
        with pytest.raises(TarnError, match="mend username"):
            mqtt.check()


def test_looking_around_leaves_the_session_alone(project: Project, mosquitto: Broker) -> None:
    with closing(transport(project, mosquitto)) as mqtt:
        begin(mqtt)
        looking = opened(project)
        assert looking.check() == [
            f"MQTT 5 at {mosquitto.url}, as tarn-vans",
            "positions: vans/+/position by qos 1",
        ]
        body = json.dumps({"van_id": "v0"}).encode()
        mosquitto.publish([("vans/v0/position", body)], retain=True)
        assert values(looking.sample("positions", 1)) == [body]
        assert values(arriving(mqtt, 1)) == [body]


def test_a_broker_that_is_not_there_is_told_by_check(project: Project, mosquitto: Broker) -> None:
    mqtt = transport(project, mosquitto)
    mosquitto.stop()
    with pytest.raises(TarnError, match=r"cannot be reached: .*refused"):
        mqtt.check()


@pytest.mark.parametrize(
    ("connection", "table", "said"),
    [
        ("{url: mqtt://b}", "{topic: a}", "MQTT repeats messages and does not name them"),
        ("{url: mqtt://b}", "{topic: a/#/b, primary_key: [x]}", "# for all from the last on"),
        ("{url: mqtt://b}", "{topic: $share/a, primary_key: [x]}", "$share/<group>/<topic>"),
        ("{url: mqtt://b}", "{topic: a, qos: 2, primary_key: [x]}", "qos"),
        ("{url: mqtt://u:p@b}", "{topic: a, primary_key: [x]}", "connection.url"),
        ("{url: mqtt://b, ca_file: x}", "{topic: a, primary_key: [x]}", "need an mqtts://"),
        (
            "{url: mqtt://b}",
            "{topic: a/+/c, primary_key: [x]}\n  other: {topic: a/b/#, primary_key: [x]}",
            "make positions and other two systems",
        ),
    ],
)
def test_mistakes_in_a_declaration(
    project: Project, connection: str, table: str, said: str
) -> None:
    project.declare("vans", "mqtt", connection, f"  positions: {table}")
    with pytest.raises(TarnError, match=re.escape(said)):
        declare(project.path / "ingestion/vans.yml")


def test_a_bad_message_that_comes_again_is_known_whatever_comes_with_it(
    project: Project, mosquitto: Broker
) -> None:
    with closing(transport(project, mosquitto)) as mqtt:
        begin(mqtt)
    bad = "vans/v1/position", b'{"van_id": "v1", "heading": 7.0}'
    mosquitto.publish([*fixes(0, 3), bad])
    stream_once(project, "vans")
    good = b'{"van_id": "v2", "sequence": 9, "speed": 3}'
    mosquitto.publish([("vans/v2/position", good), bad])
    stream_once(project, "vans")
    assert len(project.rows("quarantine_vans.positions")) == 1


def fixes(first: int, end: int) -> list[tuple[str, bytes]]:
    return [
        (topic, json.dumps({"van_id": topic, "sequence": number}).encode())
        for number, (topic, _) in enumerate(positions(first, end), first)
    ]
