"""Kinesis, read through the transport: moto's server in a process of its own."""

import json
import re
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from hashlib import md5
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from tarn.errors import TarnError
from tarn.ingestion.declarations import declare
from tarn.ingestion.streams import Batch, LostMessagesError, Place
from tarn.ingestion.streams.positions import held, position
from tarn.ingestion.streams.transports.aggregated import taken_apart
from tarn.ingestion.streams.transports.kinesis import Kinesis
from tarn.ingestion.streams.transports.shards import Answer, Listing, Mark, Shards
from tarn.scaffold.system import Wanted, new_system
from tarn.settings import settings
from tests.engine.ingesting import Project, project
from tests.engine.killing import killed, landed, stream_once
from tests.engine.kinesis import KEYS, REGION, Service, kinesis, kinesis_server

__all__ = ["kinesis", "project"]

HOUR_MS = 3_600_000
FIRST, SECOND, THIRD = (f"shardId-00000000000{number}" for number in range(3))
Positions = dict[Place, int]


@pytest.fixture
def stream() -> str:
    return f"payments-{uuid4().hex[:8]}"


def transport(project: Project, url: str, stream: str, more: str = "") -> Kinesis:
    keys = f"access_key_id: {KEYS['aws_access_key_id']}"
    secret = f"secret_access_key: {KEYS['aws_secret_access_key']}"
    connection = f"{{region: {REGION}, endpoint_url: '{url}', {keys}, {secret}}}"
    project.declare("pay", "kinesis", connection, f"  payments: {{stream: {stream}{more}}}")
    wanted = declare(project.path / "ingestion/pay.yml")
    return Kinesis(wanted.resolved(settings()), settings())


def drained(opened: Kinesis, lake: Positions, patience: float = 20) -> list[Batch]:
    """All that waits, landed: until every shard has been read to its tip."""
    batches: list[Batch] = []
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = opened.read(0.2, 1000)
        opened.landed(found)
        for batch in found:
            assert batch.position is not None
            assert batch.position >= lake.get((batch.table, batch.partition), 0)
            lake[batch.table, batch.partition] = batch.position
        batches += found
        if not found and opened.lag() and set(opened.lag().values()) == {0}:
            return batches
    raise AssertionError(f"not read to its tip: {opened.lag()}, {opened.trouble}")


def read(project: Project, url: str, stream: str, lake: Positions, more: str = "") -> list[Batch]:
    """What a new process gives beyond what the lake has."""
    with closing(transport(project, url, stream, more)) as opened:
        opened.open(lake.get)
        return drained(opened, lake)


def arriving(opened: Kinesis, lake: Positions, most: int) -> list[bytes]:
    """What comes until there are so many."""
    found: list[bytes] = []
    deadline = time.monotonic() + 20
    while len(found) < most and time.monotonic() < deadline:
        batches = opened.read(0.2, 1000)
        lake |= {(batch.table, batch.partition): batch.position or 0 for batch in batches}
        found += values(batches)
    return found


def in_trouble(opened: Kinesis) -> None:
    """Read until there is trouble."""
    deadline = time.monotonic() + 60
    while opened.trouble is None and time.monotonic() < deadline:
        assert opened.read(0.5, 100) == []


def values(batches: Sequence[Batch]) -> list[bytes]:
    return [value for batch in batches for value in batch.values if value is not None]


def numbers(begin: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(begin, end)]


def test_what_was_read_once_is_never_read_again(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream, 3)
    kinesis.put(stream, numbers(0, 10_000))
    lake: Positions = {}
    batches = read(project, kinesis.url, stream, lake)
    assert sorted(values(batches)) == sorted(numbers(0, 10_000))
    assert {len(offset) for batch in batches for offset in map(str, batch.offsets)} == {56}
    for batch in batches:
        assert len(batch.values) == len(batch.offsets) == len(batch.sent_at) == len(batch.keys)
        assert all(abs(at / 1e6 - time.time()) < 600 for at in batch.sent_at)
    kinesis.put(stream, numbers(10_000, 10_100))
    assert sorted(values(read(project, kinesis.url, stream, lake))) == sorted(
        numbers(10_000, 10_100)
    )
    assert values(read(project, kinesis.url, stream, lake)) == []


def test_what_was_read_and_did_not_land_comes_again(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream)
    kinesis.put(stream, numbers(0, 50))
    with closing(transport(project, kinesis.url, stream)) as opened:
        opened.open(lambda place: None)
        assert values(opened.read(10, 10)) == numbers(0, 10)
    assert values(read(project, kinesis.url, stream, {})) == numbers(0, 50)


def test_parents_are_read_to_their_end_before_their_children(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream, 2)
    kinesis.put(stream, numbers(0, 300))
    kinesis.split(stream, FIRST)
    kinesis.put(stream, numbers(300, 600))
    kinesis.merge(stream, "shardId-000000000003", SECOND)
    kinesis.put(stream, numbers(600, 900))
    lake: Positions = {}
    batches = read(project, kinesis.url, stream, lake)
    assert sorted(values(batches)) == sorted(numbers(0, 900))
    order = [batch.partition for batch in batches if batch.values]
    for parent, child in ((FIRST, THIRD), (SECOND, "shardId-000000000004")):
        assert max(i for i, name in enumerate(order) if name == parent) < order.index(child)
    finished = {place[1] for place, position in lake.items() if Mark.of(position).is_finished}
    assert finished == {FIRST, SECOND, "shardId-000000000003"}
    assert values(read(project, kinesis.url, stream, lake)) == []


def test_a_shard_that_is_split_while_it_is_read_goes_on_in_its_children(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream)
    kinesis.put(stream, numbers(0, 100))
    _next_second()
    lake: Positions = {}
    with closing(transport(project, kinesis.url, stream, ", start: latest")) as opened:
        opened.open(lake.get)
        assert values(drained(opened, lake)) == []
        kinesis.put(stream, numbers(100, 200))
        kinesis.split(stream, FIRST)
        kinesis.put(stream, numbers(200, 300))
        assert sorted(arriving(opened, lake, 200)) == numbers(100, 300)


def test_latest_begins_with_what_comes_after_the_first_start_not_the_second(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream, 2)
    kinesis.put(stream, numbers(0, 100))
    _next_second()
    lake: Positions = {}
    assert values(read(project, kinesis.url, stream, lake, ", start: latest")) == []
    kinesis.put(stream, numbers(100, 200))
    found = values(read(project, kinesis.url, stream, lake, ", start: latest"))
    assert sorted(found) == numbers(100, 200)


@pytest.mark.parametrize(
    "error", ["ProvisionedThroughputExceededException", "ExpiredIteratorException"]
)
def test_a_reading_that_fails_is_repeated(
    project: Project, kinesis: Service, stream: str, error: str
) -> None:
    kinesis.create(stream)
    kinesis.put(stream, numbers(0, 100))
    kinesis.fail(stream, error, 3)
    assert values(read(project, kinesis.url, stream, {})) == numbers(0, 100)


def test_an_expired_token_is_trouble_until_there_is_another(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream)
    kinesis.put(stream, numbers(0, 10))
    kinesis.fail(stream, "ExpiredTokenException", 2)
    lake: Positions = {}
    with closing(transport(project, kinesis.url, stream)) as opened:
        opened.open(lake.get)
        in_trouble(opened)
        assert "ExpiredToken" in str(opened.trouble)
        assert values(drained(opened, lake)) == numbers(0, 10)
        assert opened.trouble is None


def test_a_service_that_is_away_is_trouble_and_no_failure(
    project: Project, tmp_path: Path, stream: str
) -> None:
    lake: Positions = {}
    with kinesis_server(tmp_path / "log") as service:
        url = service.url
    with closing(transport(project, url, stream)) as opened:
        opened.open(lake.get)
        in_trouble(opened)
        assert "connect" in str(opened.trouble).lower()
        assert opened.lag() == {}
        with kinesis_server(tmp_path / "log", int(url.rpartition(":")[2])) as service:
            service.create(stream)
            service.put(stream, numbers(0, 10))
            assert values(drained(opened, lake, 60)) == numbers(0, 10)
            assert opened.trouble is None


@pytest.mark.parametrize(("hours", "is_lost"), [(23, False), (25, True)])
def test_to_have_been_away_for_longer_than_messages_are_kept_is_loud(
    hours: int, is_lost: bool
) -> None:
    now = int(time.time() * 1000)
    described = [{"ShardId": FIRST, "SequenceNumberRange": {"StartingSequenceNumber": "1"}}]
    listing = Listing(now - 900 * HOUR_MS, 24 * HOUR_MS, now, described)
    known = Mark(7, now - hours * HOUR_MS).position
    shards = Shards("payments", "payments", "pay.yml:6", "earliest", lambda _: known)
    shards.update(listing)
    shard = shards.by_name[FIRST]
    nothing = Answer([], [], [], [], None, "next", 0, now)
    if is_lost:
        with pytest.raises(LostMessagesError, match=r"25.0 hours ago, .*keeps messages for 24"):
            shards.take(shard, nothing)
    else:
        shards.take(shard, nothing)
        assert shards.is_to_tell(shard)


def test_a_shard_that_went_before_it_was_read_is_loud() -> None:
    child = {
        "ShardId": SECOND,
        "ParentShardId": FIRST,
        "SequenceNumberRange": {"StartingSequenceNumber": "1"},
    }
    for is_finished in (True, False):
        known = {FIRST: Mark(7, 1_000, is_finished).position}
        shards = Shards("payments", "payments", "pay.yml:6", "latest", known.get)
        listing = Listing(500, 24 * HOUR_MS, 2_000, [child])
        if is_finished:
            shards.update(listing)
            assert shards.by_name[SECOND].mark == Mark(0, 1_000)
        else:
            with pytest.raises(LostMessagesError, match=f"{FIRST}: is gone, and was not read"):
                shards.update(listing)


def test_a_stream_that_was_made_anew_is_loud(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream)
    kinesis.put(stream, numbers(0, 10))
    lake: Positions = {}
    with closing(transport(project, kinesis.url, stream)) as opened:
        opened.open(lake.get)
        drained(opened, lake)
        kinesis.client.delete_stream(StreamName=stream)
        with pytest.raises(TarnError, match="ResourceNotFound") as raised:
            arriving(opened, lake, 1)
        assert "create it" in str(raised.value)
        assert "ingestion/pay.yml:7" in str(raised.value)
    kinesis.create(stream)
    kinesis.put(stream, numbers(0, 10))
    with pytest.raises(LostMessagesError, match="deleted and made anew"):
        read(project, kinesis.url, stream, lake)


def test_a_position_is_one_number_that_grows() -> None:
    sequence = 49590338271490256608559692538361571095921575989136588898
    marks = [
        Mark(),
        Mark(0, 1_700_000_000_000),
        Mark(0, 1_800_000_000_000),
        Mark(sequence, 1_700_000_000_000),
        Mark(sequence, 1_700_000_000_001),
        Mark(sequence, 1_700_000_000_001, True),
        Mark(sequence + 1, 1_700_000_000_001),
    ]
    positions = [mark.position for mark in marks]
    assert [Mark.of(position) for position in positions] == marks
    assert positions == sorted(positions)


def _next_second() -> None:
    """Kinesis tells its time to the second."""
    time.sleep(1.1)


def aggregated(records: Mapping[str, Sequence[bytes]]) -> bytes:
    """As the Kinesis Producer Library writes it."""
    keys = list(records)
    message = b"".join(_bytes(1, key.encode()) for key in keys)
    for index, key in enumerate(keys):
        for data in records[key]:
            message += _bytes(3, _number(1, index) + _bytes(3, data) + _bytes(4, b"\x0a\x01x"))
    return b"\xf3\x89\x9a\xc2" + message + md5(message, usedforsecurity=False).digest()


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += struct.pack("B", value & 0x7F | 0x80)
        value >>= 7
    return out + struct.pack("B", value)


def test_records_that_a_producer_put_together_are_taken_apart(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream)
    long = b"x" * 300
    kinesis.put(stream, [b"plain", aggregated({"a": [b"1", b"2"], "b": [long]}), b"after"])
    found = read(project, kinesis.url, stream, {})
    assert values(found) == [b"plain", b"1", b"2", long, b"after"]
    offsets = [str(offset) for batch in found for offset in batch.offsets]
    assert [offset[56:] for offset in offsets] == ["", "/0", "/1", "/2", ""]
    assert len({offset[:56] for offset in offsets}) == 3
    assert [key for batch in found for key in batch.keys][1:4] == [b"a", b"a", b"b"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xf3\x89\x9a\xc2",
        b"\xf3\x89\x9a\xc2" + b"no md5 of this here",
        aggregated({"a": [b"1"]})[:-1],
        b"\xf3\x89\x9a\xc2\x0a\xff" + md5(b"\x0a\xff", usedforsecurity=False).digest(),
        b"\xf3\x89\x9a\xc2\x1a\x00" + md5(b"\x1a\x00", usedforsecurity=False).digest(),
    ],
)
def test_what_only_looks_as_if_it_was_put_together_stays_whole(data: bytes) -> None:
    assert taken_apart(data) is None


def test_check_and_its_failures_name_the_line(
    project: Project, kinesis: Service, stream: str
) -> None:
    kinesis.create(stream, 2)
    opened = transport(project, kinesis.url, stream)
    assert opened.check() == [
        f"payments: stream {stream} has 2 open shards (2 in all) and keeps messages for 24 hours"
    ]
    assert stream in [table.spec["stream"] for table in opened.offered()]
    with pytest.raises(TarnError, match=r"ingestion/pay.yml:7.*ResourceNotFound"):
        transport(project, kinesis.url, "absent").check()


@pytest.mark.parametrize(
    ("connection", "said"),
    [
        ("{region: eu-central-1, access_key_id: a}", "need each other"),
        (
            "{region: x, profile: p, access_key_id: a, secret_access_key: b}",
            "two credentials: keep one",
        ),
        ("{region: x, endpoint: y}", "did you mean 'endpoint_url'?"),
    ],
)
def test_mistakes_in_a_declaration(project: Project, connection: str, said: str) -> None:
    project.declare("pay", "kinesis", connection, "  payments: {stream: payments}")
    with pytest.raises(TarnError, match=re.escape(said)):
        declare(project.path / "ingestion/pay.yml")


def payments(begin: int, end: int) -> list[bytes]:
    return [
        json.dumps({"payment_id": number, "amount": 1.5}).encode() for number in range(begin, end)
    ]


def test_streams_that_are_killed_lose_and_double_nothing(
    project: Project, kinesis: Service, stream: str
) -> None:
    transport(project, kinesis.url, stream, ", commit_every: 100ms")
    kinesis.create(stream, 2)
    for round in range(4):
        kinesis.put(stream, payments(round * 2000, round * 2000 + 2000))
        if round == 1:
            kinesis.split(stream, FIRST)
        if round == 2:
            kinesis.merge(stream, "shardId-000000000003", SECOND)
        killed(project, "pay", "payments")
    stream_once(project, "pay")
    found = landed(project, "raw_pay.payments", "payment_id")
    assert set(found) == set(range(8000))
    assert set(found.values()) == {1}
    versions = project.versions()
    stream_once(project, "pay")
    assert project.versions()["raw_pay.payments"] == versions["raw_pay.payments"]


def test_a_new_system_is_declared_from_the_streams_there_are(
    project: Project, kinesis: Service, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinesis.create(stream)
    kinesis.put(stream, [b'{"payment_id": "p1", "place": {"city": "Kiel"}, "amount": 1.5}'])
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis.url)
    for name, value in KEYS.items():
        monkeypatch.setenv(name.upper(), value)
    settings.cache_clear()
    (project.path / "models").mkdir()
    table = stream.replace("-", "_")
    made = new_system(Wanted("kinesis", "shop", REGION, [table]), settings())
    declared = yaml.safe_load(made.files["ingestion/shop.yml"])
    assert declared["connection"] == {"region": REGION}
    assert declared["tables"] == {table: {"stream": stream}}
    staging = made.files[f"models/staging/shop/stg_shop__{table}.sql"]
    for column in ("payment_id", "place__city", "amount", "_sent_at"):
        assert column in staging


def test_after_a_gap_that_is_accepted_reading_goes_on(
    project: Project, kinesis: Service, stream: str
) -> None:
    transport(project, kinesis.url, stream)
    kinesis.create(stream)
    kinesis.put(stream, payments(0, 100))
    stream_once(project, "pay")
    kinesis.client.delete_stream(StreamName=stream)
    _next_second()
    kinesis.create(stream)
    kinesis.put(stream, payments(100, 200))
    with pytest.raises(AssertionError, match=r"made anew(?s:.*)--accept-gap"):
        stream_once(project, "pay")
    assert len(project.rows("raw_pay.payments")) == 100
    stream_once(project, "pay", "--accept-gap")
    assert set(landed(project, "raw_pay.payments", "payment_id")) == set(range(200))


def test_a_quiet_shard_is_known_to_have_been_read(
    project: Project, kinesis: Service, stream: str
) -> None:
    """Its position has the time, or a short absence would look like one without end."""
    transport(project, kinesis.url, stream, ", commit_every: 100ms")
    kinesis.create(stream, 2)
    kinesis.put(stream, payments(0, 1))
    stream_once(project, "pay")
    table = project.lake.table("raw_pay.payments")
    known = {shard: position(held(table, shard)) for shard in (FIRST, SECOND)}
    for reached in known.values():
        assert reached is not None
        assert abs(Mark.of(reached).seen_ms / 1000 - time.time()) < 600
