"""The streams of `python -m demo`: what is made, against the original; what brokers hold.

Brokers are asked by clients of their own, independent of the demo's and of the lakehouse's.
"""

import json
import os
import queue
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3  # type: ignore[import-untyped]
import duckdb
import grpc  # type: ignore[import-untyped]
import pytest
from confluent_kafka import Consumer, TopicPartition
from deltalake import DeltaTable
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from tests.engine.conftest import BIN, ROOT, copy_project
from tests.engine.conftest import run as command
from tests.engine.demos import (
    DEMO,
    PRINT_ENVIRONMENT,
    Environment,
    demo,
    environment_of,
    original,
    run,
    run_demo,
    serving,
    started,
)

__all__ = ["demo", "original", "run"]

TOPICS = {
    "web.clicks": ("web_shop", "clicks", ("event_id",)),
    "web.orders": ("web_shop", "orders", ("event_id",)),
    "payments": ("payments", "payments", ("payment_id", "status")),
    "sign_ups": ("sign_ups", "sign_ups", ("sign_up_id",)),
    "vans": ("vans", "positions", ("van_id", "sequence")),
}
"""System, table and key of each topic."""
GOOD = "fault is null"
SHOP = ("web.clicks", "web.orders")


@pytest.fixture(scope="module")
def made(run: Path, original: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Session with a table for each topic, beside the original."""
    for topic in TOPICS:
        file = run / "streams" / f"{topic}.parquet"
        original.execute(f"create table \"{topic}\" as from '{file}'")
    return original


# What is made.


@pytest.mark.parametrize("topic", TOPICS)
def test_messages_are_what_happened_but_for_the_stated_shares(
    made: duckdb.DuckDBPyConnection, topic: str
) -> None:
    keys = ", ".join(f"event.{key}" for key in TOPICS[topic][2])
    events, late, twice, bad = made.sql(f"""
        select count(distinct ({keys})), count(*) filter (is_late and not is_duplicate),
            count(*) filter (is_duplicate), count(fault) from "{topic}"
    """).fetchall()[0]
    assert made.sql(f'select count(*) from "{topic}"').fetchall() == [(events + twice,)]
    assert twice == pytest.approx(events / 100, abs=1 + events / 500)
    assert late == pytest.approx(events / 50, abs=1 + events / 500)
    assert bad == pytest.approx(events / 500, abs=1)
    assert made.sql(f"""
        select count(*) from "{topic}"
        where fault is null and cast(value as json) != to_json(event)
            or fault is not null and value = cast(to_json(event) as varchar)
            or fault = 'broken JSON' and json_valid(value)
            or fault != 'broken JSON' and not json_valid(value)
    """).fetchall() == [(0,)]


@pytest.mark.parametrize("topic", TOPICS)
def test_messages_come_in_the_order_of_sending_not_of_happening(
    made: duckdb.DuckDBPyConnection, topic: str
) -> None:
    order = "lag({}) over (order by number)"
    unsent, overtaken, far = made.sql(f"""
        select count(*) filter (sent_at < before), count(*) filter (occurred_at < happened),
            max(sent_at - occurred_at)
        from (select *, {order.format("sent_at")} as before,
            {order.format("occurred_at")} as happened from "{topic}")
    """).fetchall()[0]
    assert unsent == 0
    assert overtaken > 0
    assert timedelta(minutes=20) < far < timedelta(hours=3)


def test_orders_are_real_baskets(made: duckdb.DuckDBPyConnection) -> None:
    counted = made.sql("""
        with sold as (
            select basket_id as order_id, household_id, store_id,
                cast(sum(sales_value) as decimal(12,2)) as amount, count(*) as item_count
            from transactions where transaction_timestamp >= '2017-12-25' group by all
        ),
        ordered as (
            select distinct event.order_id, event.household_id, event.store_id,
                event.amount, event.item_count from "web.orders"
        )
        select (select count(*) from sold), (select count(*) from ordered),
            (select count(*) from ordered natural join sold)
    """).fetchall()[0]
    assert counted[1] == counted[2] == 304
    assert counted[0] / 10 == pytest.approx(304, rel=0.2)


def test_each_order_goes_one_of_two_ways(made: duckdb.DuckDBPyConnection) -> None:
    ways = made.sql("""
        select list(event.event_type order by event.occurred_at) as way, count(*)
        from "web.orders" where not is_duplicate group by event.order_id
    """).fetchall()
    counted = Counter(tuple(way) for way, _ in ways)
    assert counted == {
        ("placed", "picked", "dispatched", "delivered"): 285,
        ("placed", "picked", "cancelled"): 19,
    }


def test_the_tills_know_all_orders_but_four_and_five_receipts_more(
    run: Path, made: duckdb.DuckDBPyConnection
) -> None:
    with sqlite3.connect(f"file:{run}/pos.db?mode=ro", uri=True) as tills:
        receipts = dict(tills.execute("select order_id, rung_up_at from web_receipts"))
        real = dict(tills.execute("select basket_id, sold_at from baskets"))
    ordered = {order for (order,) in made.sql('select event.order_id from "web.orders"').fetchall()}
    assert len(ordered - receipts.keys()) == 4
    assert len(receipts.keys() - ordered) == 5
    assert receipts.items() <= real.items()


def test_payments_add_up(made: duckdb.DuckDBPyConnection) -> None:
    """What is authorized and not refunded is the order's amount, unless it was cancelled."""
    wrong = made.sql("""
        with paid as (
            select event.order_id as order_id, sum(case event.status when 'authorized'
                then event.amount when 'refunded' then -event.amount else 0 end) as amount
            from payments where not is_duplicate group by all
        ),
        owed as (
            select event.order_id as order_id,
                case when bool_or(event.event_type = 'cancelled') then 0
                    else any_value(event.amount) end as amount
            from "web.orders" group by all
        )
        select * from paid full join owed using (order_id)
        where paid.amount is distinct from owed.amount
    """).fetchall()
    assert wrong == []
    kinds = made.sql("""
        select count(distinct event.order_id) filter (event.place.longitude < -100),
            count(*) filter (event.reason = 'wrong_code'),
            count(*) filter (event.amount > 400 and event.status = 'authorized')
        from payments where not is_duplicate
    """).fetchall()[0]
    assert kinds[0] == 4
    assert kinds[1] == 36
    assert kinds[2] >= 4


def test_vans_drive_from_the_store_to_the_door_and_back(made: duckdb.DuckDBPyConnection) -> None:
    trips = made.sql("""
        with place as (
            select event.order_id as order_id, any_value(event.delivery) as delivery,
                any_value(event.store_id) as store_id,
                max(event.occurred_at) filter (event.event_type = 'delivered') as delivered_at
            from "web.orders" group by all
        ),
        gps as (
            select distinct event.* from vans where event.order_id is not null
        ),
        trip as (
            select order_id, arg_min(latitude, sequence) as first_latitude,
                arg_min(longitude, sequence) as first_longitude,
                arg_max(latitude, sequence) as last_latitude,
                arg_max(longitude, sequence) as last_longitude,
                max(occurred_at) as arrived_at, max(speed_kmh) as fastest, count(*) as ticks,
                epoch(max(cast(occurred_at as timestamp)) - min(cast(occurred_at as timestamp)))
                    as seconds
            from gps group by order_id
        ),
        garages as (
            select store_id, greatest(max(first_latitude) - min(first_latitude),
                max(first_longitude) - min(first_longitude)) as width
            from trip inner join place using (order_id) group by store_id
        )
        select count(*),
            max(greatest(abs(last_latitude - delivery.latitude),
                abs(last_longitude - delivery.longitude))),
            bool_and(arrived_at = delivered_at), max(fastest),
            max(abs(seconds - 10 * (ticks - 1))), (select max(width) from garages)
        from trip inner join place using (order_id)
    """).fetchall()[0]
    count, away, in_time, fastest, uneven, width = trips
    assert count == 285
    assert in_time
    assert max(away, width) < 0.0001
    assert fastest < 75
    assert uneven < 0.1


def test_sessions_lead_to_an_order_or_do_not(made: duckdb.DuckDBPyConnection) -> None:
    confirmed, sessions, households = made.sql("""
        select count(distinct event.order_id),
            count(*) filter (event.page.type = 'home'), count(distinct event.household_id)
        from "web.clicks" where not is_duplicate
    """).fetchall()[0]
    assert confirmed == 304
    assert sessions > 3 * confirmed
    assert households > 304
    products = made.sql("""
        select count(*) from "web.clicks" where event.page.product_id not in
            (select product_id from transactions)
    """)
    assert products.fetchall() == [(0,)]


# What brokers hold.


def _expected(made: duckdb.DuckDBPyConnection, topic: str) -> Counter[str]:
    return Counter(value for (value,) in made.sql(f'select value from "{topic}"').fetchall())


def _kafka(address: str, *topics: str) -> list[str]:
    """All messages of some topics."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test"})
    listed = consumer.list_topics(timeout=10).topics
    places = [TopicPartition(each, part, 0) for each in topics for part in listed[each].partitions]
    left = sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
    consumer.assign(places)
    values: list[str] = []
    while left > len(values):
        values += [(each.value() or b"").decode() for each in consumer.consume(left, 0.2)]
    consumer.close()
    return values


def _kinesis(address: str) -> list[str]:
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    client = boto3.client("kinesis", "us-east-1", endpoint_url=address, **keys)
    values = []
    for shard in client.list_shards(StreamName="payments")["Shards"]:
        at = {"StreamName": "payments", "ShardId": shard["ShardId"]}
        iterator = client.get_shard_iterator(**at, ShardIteratorType="TRIM_HORIZON")
        answer = client.get_records(ShardIterator=iterator["ShardIterator"])
        values += [record["Data"].decode() for record in answer["Records"]]
    return values


def _pubsub(address: str) -> list[str]:
    name = "projects/grocer/subscriptions/lakehouse"
    values: list[str] = []
    with grpc.insecure_channel(address) as channel:
        client = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        while True:
            request = {"subscription": name, "max_messages": 500, "return_immediately": True}
            got = client.pull(request).received_messages
            if not got:
                return values
            values += [each.message.data.decode() for each in got]


def _mqtt(url: str, password: str, most: int) -> list[str]:
    """What waits for the lakehouse; it is acknowledged."""
    address = urlsplit(url)
    came: queue.Queue[str] = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2, client_id="tarn-vans", clean_session=False)
    client.username_pw_set("anybody", password)
    client.on_message = lambda _, __, message: came.put(message.payload.decode())
    client.connect(address.hostname or "", address.port or 0)
    client.loop_start()
    values = [came.get(timeout=30) for _ in range(most)]
    client.disconnect()
    client.loop_stop()
    return values


def test_brokers_hold_what_is_made(demo: Environment, made: duckdb.DuckDBPyConnection) -> None:
    expected = sum((_expected(made, topic) for topic in SHOP), Counter())
    assert Counter(_kafka(demo["WEB_SHOP_KAFKA"], *SHOP)) == expected
    assert Counter(_kinesis(demo["PAYMENTS_KINESIS_URL"])) == _expected(made, "payments")
    assert Counter(_pubsub(demo["PUBSUB_EMULATOR_HOST"])) == _expected(made, "sign_ups")
    expected = _expected(made, "vans")
    password = demo["VANS_MQTT_PASSWORD"]
    assert Counter(_mqtt(demo["VANS_MQTT_URL"], password, expected.total())) == expected


def test_vans_want_their_password(demo: Environment) -> None:
    address = urlsplit(demo["VANS_MQTT_URL"])
    said: queue.Queue[bool] = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("anybody", "wrong")
    client.on_connect = lambda _, __, ___, code, ____: said.put(code.is_failure)
    client.connect(address.hostname or "", address.port or 0)
    client.loop_start()
    assert said.get(timeout=30)
    client.loop_stop()


def test_brokers_end_with_the_demo_even_if_it_is_killed(run: Path) -> None:
    with started(
        run, "--", sys.executable, "-c", PRINT_ENVIRONMENT + "; sys.stdin.read()"
    ) as process:
        assert process.stdout is not None
        environment = json.loads(process.stdout.readline())
        process.kill()
        addresses = [
            urlsplit(environment["VANS_MQTT_URL"]).netloc,
            urlsplit(environment["PAYMENTS_KINESIS_URL"]).netloc,
            environment["PUBSUB_EMULATOR_HOST"],
            environment["WEB_SHOP_KAFKA"],
        ]
        for address in addresses:
            while _is_open(address):
                time.sleep(0.05)


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


# What keeps going.


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A run folder of the test's own: what is sent by it is part of its later bursts."""
    own = tmp_path / "run"
    shutil.copytree(run, own, copy_function=os.link, ignore=shutil.ignore_patterns("brokers.*"))
    return own


def test_the_week_is_sent_again_as_if_it_was_now(own: Path) -> None:
    with serving(own) as environment, started(own, "stream", "--speed", "600") as stream:
        address = environment["WEB_SHOP_KAFKA"]
        made = Counter(_kafka(address, *SHOP))
        while sum((Counter(_kafka(address, *SHOP)) - made).values()) < 100:
            assert stream.poll() is None
        stream.send_signal(signal.SIGINT)
        assert stream.wait(timeout=30) == 0
        new = Counter(_kafka(address, *SHOP)) - made
    assert max(new.values()) <= 2, "nothing is sent again but what comes twice"
    events = [json.loads(value) for value in new if _is_json(value)]
    now = datetime.now(UTC)
    times = [datetime.fromisoformat(event["occurred_at"]) for event in events]
    assert now - timedelta(minutes=15) < min(times) <= max(times) <= now
    assert {event["order_id"] for event in events} - {None} > set()
    with serving(own) as environment:
        again = Counter(_kafka(environment["WEB_SHOP_KAFKA"], *SHOP))
        assert again == made + new, "brokers know it when they start"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_it_says_so_when_the_brokers_end(own: Path) -> None:
    with serving(own):
        stream = subprocess.Popen(
            [*DEMO, "stream", "--speed", "6000"],
            cwd=ROOT,
            env=environment_of(own),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert stream.stderr is not None
        assert "Ctrl-C stops" in stream.stderr.readline()
    assert stream.wait(timeout=200) == 1
    assert "the brokers have ended" in stream.stderr.read()


@pytest.mark.parametrize("speed", ["0", "-1", "fast"])
def test_a_speed_is_a_number_above_nothing(run: Path, speed: str) -> None:
    assert run_demo(run, "stream", "--speed", speed).returncode == 2


def test_tarn_hands_over_to_the_demo_of_the_project(run: Path, tmp_path: Path) -> None:
    shown = _tarn(ROOT, run, "demo", "--", "printenv", "PAYMENTS_KINESIS_URL")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+\n", shown.stdout)
    helped = _tarn(ROOT, run, "demo", "--help")
    assert "python -m demo stream" in helped.stderr
    (tmp_path / "dbt_project.yml").touch()
    refused = _tarn(tmp_path, run, "demo", "stream")
    assert refused.returncode == 1
    assert "this project has no demo" in refused.stderr
    assert "Traceback" not in refused.stderr


def _tarn(project: Path, run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command(project, environment_of(run), str(BIN / "tarn"), *arguments)


# What the lakehouse makes of it.


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """A project that has read the streams as they are when the demo starts, and again later."""
    project = tmp_path_factory.mktemp("loaded") / "project"
    copy_project(project)
    for _ in ("first", "again"):
        systems = sorted({system for system, _, _ in TOPICS.values()})
        ingest = [str(BIN / "tarn"), "ingest", *systems]
        done = command(project, environment_of(run), *DEMO, "--", *ingest)
        assert done.returncode == 0, done.stdout + done.stderr
    return project


def _lake(made: duckdb.DuckDBPyConnection, project: Path, schema: str, table: str) -> str:
    """Register a table of the lake as it is now; its name."""
    name = f"{schema}_{table}"
    made.register(name, DeltaTable(project / "lake" / schema / table).to_pyarrow_table())
    return name


@pytest.mark.parametrize("topic", TOPICS)
def test_the_lake_has_each_event_once_and_as_it_was(
    made: duckdb.DuckDBPyConnection, project: Path, topic: str
) -> None:
    system, table, _ = TOPICS[topic]
    landed = _lake(made, project, f"raw_{system}", table)
    [(event,)] = made.sql(f'select event from "{topic}" limit 1').fetchall()
    paths = list(_leaves(event))
    happened = [_comparable(f"event.{path}") for path in paths]
    rows = [_comparable(path.replace(".", "__")) for path in paths]
    expected = f'select {", ".join(happened)} from "{topic}" where not is_duplicate and {GOOD}'
    found = f"select {', '.join(rows)} from {landed}"
    assert made.sql(f"({expected}) except all ({found})").fetchall() == []
    assert made.sql(f"({found}) except all ({expected})").fetchall() == []
    dates = made.sql(f"select count(*) from {landed} where _event_date != occurred_at::date")
    assert dates.fetchall() == [(0,)]


def _leaves(event: dict[str, Any]) -> Iterator[str]:
    for name, value in event.items():
        if isinstance(value, dict):
            yield from (f"{name}.{leaf}" for leaf in _leaves(value))
        else:
            yield name


def _comparable(column: str) -> str:
    """Times are texts in events, and instants in the lake."""
    return f"epoch_ms(cast({column} as timestamp))" if column.endswith("_at") else column


@pytest.mark.parametrize("topic", TOPICS)
def test_every_message_is_accounted_for(
    made: duckdb.DuckDBPyConnection, project: Path, topic: str
) -> None:
    system, table, _ = TOPICS[topic]
    loads = _lake(made, project, "tarn", "loads")
    bad = _lake(made, project, f"quarantine_{system}", table)
    sent, faults, again = made.sql(
        f'select count(*), count(fault), sum(is_duplicate::int) from "{topic}"'
    ).fetchall()[0]
    counts = made.sql(f"""
        select rows_read, rows_accepted, rows_quarantined, rows_deduplicated from {loads}
        where system = '{system}' and table_name = '{table}' and rows_accepted > 0
    """).fetchall()
    # However many times it is loaded: what comes again is of no load that brought rows.
    assert [sum(each) for each in zip(*counts, strict=True)] == [
        sent,
        sent - faults - again,
        faults,
        again,
    ]
    assert made.sql(f"select count(*) from {bad}").fetchall() == [(faults,)]
