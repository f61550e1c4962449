"""Pub/Sub, against Google's own server in memory and against the demo's."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from threading import Event, Thread
from time import sleep, time
from urllib.request import urlopen

import pytest

from tarn.errors import TarnError
from tarn.ingestion.declarations import declared
from tarn.ingestion.status import status
from tarn.ingestion.streams import Batch, gauges, goal
from tarn.ingestion.streams.consumer import Wishes
from tarn.ingestion.streams.running import run
from tarn.ingestion.streams.transports.pubsub import Pubsub
from tarn.settings import settings
from tarn.storage.clock import now
from tarn.storage.loads import TableStatus
from tests.engine.conftest import BIN, ROOT
from tests.engine.ingesting import Project, counts_of, project
from tests.engine.pubsub import PROJECT, SERVERS, Broker, broker, free_port

__all__ = ["project"]

TABLES = "  orders: {}\n  sign_ups: {subscription: sign-ups}"
DEADLINE_SECONDS = 10
"""The shortest that Pub/Sub has."""
KILLS = int(os.environ.get("TARN_PUBSUB_KILLS", "3"))
"""More by hand: TARN_PUBSUB_KILLS=60 pytest -n 0 tests/engine/test_pubsub.py -k kill."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that are read once end soon after the last message."""
    monkeypatch.setattr(goal, "_IDLE_SECONDS", 1.5)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with broker(request.param) as found:
        for name in ("orders", "sign-ups"):
            found.make(name)
        yield found


def transport(
    project: Project, monkeypatch: pytest.MonkeyPatch, address: str | None, tables: str = TABLES
) -> Pubsub:
    """Of the system `shop`, whose server is at an address."""
    if address:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
        settings.cache_clear()
    project.declare("shop", "pubsub", f"{{project: {PROJECT}}}", tables)
    [system] = declared(project.path / "ingestion", ["shop"])
    return Pubsub(system.resolved(settings()), settings())


@pytest.fixture
def shop(project: Project, server: Broker, monkeypatch: pytest.MonkeyPatch) -> Pubsub:
    return transport(project, monkeypatch, server.address)


@contextmanager
def opened(shop: Pubsub) -> Iterator[Pubsub]:
    with closing(shop):
        shop.open(lambda place: None)
        yield shop


def read(shop: Pubsub, messages: int, most: int = 1000, is_landed: bool = True) -> list[Batch]:
    """Batches until so many messages have come; none if they do not within 30 seconds."""
    batches: list[Batch] = []
    until = time() + 30
    while sum(len(each.values) for each in batches) < messages:
        assert time() < until, f"only {batches} came; {shop.trouble}"
        came = shop.read(1, most)
        batches += came
        if is_landed:
            shop.landed(came)
    return batches


def ids(batches: Sequence[Batch]) -> list[str]:
    return sorted(str(each) for batch in batches for each in batch.offsets)


def test_messages_come_with_their_ids_times_and_keys(shop: Pubsub, server: Broker) -> None:
    values = [json.dumps({"order_id": i}).encode() for i in range(2500)]
    published = server.publish("orders", values)
    [signed_up] = server.publish("sign-ups", [b"\xff{"], key="berlin")
    with opened(shop):
        batches = read(shop, 2501)
    orders = [each for each in batches if each.table == "orders"]
    assert {each.partition for each in orders} == {"orders"}
    assert ids(orders) == sorted(published)
    assert sorted(value or b"" for each in orders for value in each.values) == sorted(values)
    latest = max(sent for each in orders for sent in each.sent_at)
    assert abs(latest / 1e6 - time()) < 600
    [other] = [each for each in batches if each.table == "sign_ups"]
    assert (other.partition, other.values, other.offsets) == ("sign-ups", [b"\xff{"], [signed_up])
    assert (other.keys, other.position) == ([b"berlin"], None)


def test_what_has_landed_never_comes_again_and_all_else_does_at_once(
    shop: Pubsub, server: Broker
) -> None:
    first = server.publish("orders", [b"1"] * 300)
    with opened(shop):
        assert ids(read(shop, 300)) == sorted(first)
    second = server.publish("orders", [b"2"] * 200)
    with opened(shop):
        assert ids(read(shop, 200, is_landed=False)) == sorted(second)
    with opened(shop):
        assert ids(read(shop, 200)) == sorted(second)
    assert server.waiting("orders") == []


def test_leases_are_extended_while_messages_wait_to_land(shop: Pubsub, server: Broker) -> None:
    published = server.publish("orders", [b"1"] * 3000)
    with opened(shop):
        batches = read(shop, 3000, is_landed=False)
        sleep(DEADLINE_SECONDS + 1.5)
        assert server.waiting("orders") == []
        assert shop.read(0.1, 1000) == []
        shop.landed(batches)
    assert ids(batches) == sorted(published)
    assert server.waiting("orders") == []


def test_no_more_is_taken_than_the_consumer_asks_for(shop: Pubsub, server: Broker) -> None:
    server.publish("orders", [b"1"] * 5000)
    with opened(shop):
        came = read(shop, 100, most=100)
        # One more answer may be under way.
        assert len(server.waiting("orders")) >= 5000 - len(ids(came)) - 100


def test_a_table_that_is_left_is_another_subscribers(shop: Pubsub, server: Broker) -> None:
    server.publish("orders", [b"1"] * 10)
    with opened(shop):
        read(shop, 10, is_landed=False)
        shop.leave("orders")
        # A request under way may have taken them before it was given up: until their lease ends.
        until, left = time() + 2 * DEADLINE_SECONDS, set[str]()
        while len(left) < 10 and time() < until:
            left.update(server.waiting("orders"))
        assert len(left) == 10
        server.publish("sign-ups", [b"2"])
        assert [each.table for each in read(shop, 1)] == ["sign_ups"]
        assert list(shop.lag()) == [("sign_ups", "sign-ups")]


def test_a_key_keeps_its_order(
    project: Project, server: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.make("moves", enable_message_ordering=True)
    shop = transport(project, monkeypatch, server.address, "  moves: {}")
    published = server.publish("moves", [str(i).encode() for i in range(8)], key="van-1")
    with opened(shop):
        came = read(shop, 8)
    assert [each for batch in came for each in batch.offsets] == published


def test_exactly_once_delivery_refuses_late_acknowledgements_without_harm(
    project: Project, server: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.make("paid", enable_exactly_once_delivery=True)
    shop = transport(project, monkeypatch, server.address, "  paid: {}")
    published = server.publish("paid", [b"1"] * 50)
    with opened(shop):
        [*batches] = read(shop, 50, is_landed=False)
        late = replace(batches[0], receipts=[*batches[0].receipts, "1-99"])
        shop.landed([late, *batches[1:]])
    assert ids(batches) == sorted(published)
    assert server.waiting("paid") == []


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_is_away_is_waited_for(
    project: Project, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    port = free_port()
    with opened(transport(project, monkeypatch, f"127.0.0.1:{port}", "  orders: {}")) as shop:
        while shop.trouble is None:
            assert shop.read(1, 100) == []
        assert "orders: 503" in shop.trouble
        for _ in range(2):
            with broker(kind, port) as server:
                server.make("orders")
                published = server.publish("orders", [b"1"])
                assert ids(read(shop, 1)) == published
                assert shop.trouble is None


def test_a_subscription_that_is_not_there_is_told(shop: Pubsub, server: Broker) -> None:
    server.subscriber.delete_subscription(subscription=f"projects/{PROJECT}/subscriptions/sign-ups")
    with pytest.raises(TarnError, match=r"ingestion/shop.yml:8.*sign-ups(.|\n)*create it"):
        shop.check()
    with opened(shop), pytest.raises(TarnError, match=r"ingestion/shop.yml:8.*sign-ups"):
        read(shop, 1)


def test_what_there_is_can_be_asked(shop: Pubsub, server: Broker) -> None:
    told = shop.check()
    assert told[0].startswith("orders: projects/shop/subscriptions/orders, of projects/shop/topics")
    pushed = {"push_endpoint": "https://example.com/push"}
    server.make("pushed", push_config=pushed)
    offered = {each.name: each.spec for each in shop.offered()}
    assert offered == {"orders": {}, "sign_ups": {"subscription": "sign-ups"}}


def test_a_subscription_that_delivers_elsewhere_cannot_be_read(
    project: Project, server: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.make("pushed", push_config={"push_endpoint": "https://example.com/push"})
    shop = transport(project, monkeypatch, server.address, "  pushed: {}")
    with pytest.raises(TarnError, match="delivers elsewhere by itself"):
        shop.check()


def test_two_tables_cannot_share_a_subscription(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = "  orders: {}\n  moves: {subscription: projects/shop/subscriptions/orders}"
    with pytest.raises(TarnError, match="two tables would share the messages of projects/shop"):
        transport(project, monkeypatch, None, tables)


def test_credentials_that_are_missing_or_broken_are_told(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "key.json")
    settings.cache_clear()
    shop = transport(project, monkeypatch, None)
    with pytest.raises(TarnError, match=r"ingestion/shop.yml:5(.|\n)*key.json was not found"):
        shop.check()
    (project.path / "key.json").write_text("{}")
    with pytest.raises(TarnError, match="no credentials for Google"):
        shop.check()


def test_nothing_is_connected_to_before_it_is_opened(project: Project) -> None:
    project.declare("shop", "pubsub", f"{{project: {PROJECT}}}", TABLES)
    [system] = declared(project.path / "ingestion", ["shop"])
    shop = Pubsub(system, settings())
    assert shop.trouble is None
    assert shop.lag() == {}
    shop.close()


def orders(count: int) -> list[bytes]:
    return [json.dumps({"order_id": i, "amount": i / 4}).encode() for i in range(count)]


def test_what_waits_lands_once_and_the_bad_is_kept_apart(
    project: Project, shop: Pubsub, server: Broker
) -> None:
    tables = "  orders: {primary_key: [order_id]}\n  sign_ups: {subscription: sign-ups}"
    project.declare("shop", "pubsub", f"{{project: {PROJECT}}}", tables)
    published = server.publish("orders", [*orders(1500), *orders(20), b"{", b'{"amount": 1}'])
    load = project.load("shop")["orders"]
    assert counts_of(load) == (1522, 1500, 2, 20)
    rows = project.rows("raw_shop.orders", order="order_id")
    assert [row["order_id"] for row in rows] == list(range(1500))
    assert {row["_partition"] for row in rows} == {"orders"}
    assert {row["_offset"] for row in rows} < set(published)
    places = project.rows("quarantine_shop.orders", "_place")
    assert {row["_place"] for row in places} == {f"orders offset {i}" for i in published[-2:]}
    assert server.waiting("orders") == []


def test_what_had_landed_before_it_was_acknowledged_is_known_by_its_id(
    project: Project, shop: Pubsub, server: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish("orders", [b'{"order_id": 1}'] * 300)
    with monkeypatch.context() as killed:
        killed.setattr(Pubsub, "landed", lambda self, batches: None)
        assert counts_of(project.load("shop")["orders"]) == (300, 300, 0, 0)
    assert counts_of(project.load("shop")["orders"]) == (300, 0, 0, 300)
    assert len(project.rows("raw_shop.orders")) == 300
    assert server.waiting("orders") == []


def test_a_lake_that_cannot_be_written_is_told_until_it_can_be(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "_EVERY", 0.1)
    in_the_way = project.path / "lake/raw_shop"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    with broker("demo") as server:
        server.make("orders")
        server.publish("orders", orders(10))
        transport(project, monkeypatch, server.address, "  orders: {commit_every: 100ms}")
        systems, stop, port = declared(project.path / "ingestion"), Event(), free_port()
        given = (systems, settings(), Wishes(), stop, print)
        stream = Thread(target=run, args=given, kwargs={"metrics_port": port})
        stream.start()
        told = wait_for_state(project, "failed")
        assert told.error == "orders: cannot be written, trying again"
        in_the_way.unlink()
        wait_for_state(project, "ok")
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            metrics = answer.read().decode().splitlines()
        assert 'tarn_stream_rows_committed_total{system="shop",table="orders"} 10.0' in metrics
        assert 'tarn_stream_up{system="shop"} 1.0' in metrics
        stop.set()
        stream.join()
        assert server.waiting("orders") == []
    assert len(project.rows("raw_shop.orders")) == 10


def wait_for_state(project: Project, wanted: str) -> TableStatus:
    until = time() + 60
    while True:
        [found] = status(project.lake, declared(project.path / "ingestion"), now())
        if found.state == wanted:
            return found
        assert time() < until, found
        sleep(0.1)


@pytest.mark.parametrize("server", ["google"], indirect=True)
def test_kills_lose_and_double_nothing(
    project: Project, server: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport(project, monkeypatch, server.address, "  orders: {commit_every: 200ms}")
    chance = random.Random(KILLS)
    with publishing(server) as published:
        for _ in range(KILLS):
            process = streaming(project)
            wait_for_version(project, process, version(project) + chance.randint(1, 5))
            sleep(chance.random() / 4)
            process.kill()
            assert process.wait() == -signal.SIGKILL
    process = streaming(project)
    until = time() + 120
    while landed(project) < len(published) and time() < until:
        sleep(0.5)
    process.terminate()
    assert process.wait() == 0
    rows = project.rows("raw_shop.orders", "order_id", "order_id")
    assert [row["order_id"] for row in rows] == published


@contextmanager
def publishing(server: Broker) -> Iterator[list[int]]:
    """Publish orders in the meantime; which ones, when it is over."""
    published: list[int] = []
    is_over = Event()

    def publish() -> None:
        while not is_over.wait(0.05):
            some = range(len(published), len(published) + 20)
            server.publish("orders", [json.dumps({"order_id": i}).encode() for i in some])
            published.extend(some)

    thread = Thread(target=publish)
    thread.start()
    try:
        yield published
    finally:
        is_over.set()
        thread.join()


def streaming(project: Project) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(BIN / "tarn"), "stream", "shop"]
    with (project.path / "log").open("a") as log:
        return subprocess.Popen(command, cwd=project.path, env=environment, stdout=log, stderr=log)


def version(project: Project) -> int:
    table = project.lake.table("raw_shop.orders")
    return table.version() if table else -1


def landed(project: Project) -> int:
    table = project.lake.table("raw_shop.orders")
    return table.count() if table else 0


def wait_for_version(project: Project, process: subprocess.Popen[bytes], wanted: int) -> None:
    until = time() + 60
    while version(project) < wanted:
        log = (project.path / "log").read_text()
        assert process.poll() is None, log
        assert time() < until, log
        sleep(0.02)
