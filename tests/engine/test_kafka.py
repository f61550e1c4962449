"""What is written to Kafka is in the lake once, whoever stops, dies or writes nonsense."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from tarn.cli import cli
from tarn.ingestion.declarations import declared
from tarn.ingestion.declarations.kafka import KafkaSystem
from tarn.ingestion.streams import consumer
from tarn.ingestion.streams.consumer import Wishes
from tarn.ingestion.streams.running import Running, run
from tarn.settings import settings
from tests.engine.ingesting import Project, project
from tests.engine.kafka import Topic, broker

__all__ = ["project"]

# The mock cluster knows no static members: it would wait for one that left to time out.
OPTIONS = "{group.instance.id: '', session.timeout.ms: 6000, heartbeat.interval.ms: 500}"
TARN = [sys.executable, "-c", "from tarn.cli import main; main()"]
ORDERS = "  orders:\n    primary_key: [order_id]\n    commit_every: 200ms"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with broker() as address:
        yield address


class Shop:
    """A project with one Kafka system, whose topics no other test has."""

    def __init__(self, project: Project, address: str) -> None:
        self.project, self.address = project, address
        self.mark = f"{time.time_ns():x}"

    def declare(self, tables: str = ORDERS) -> None:
        lines = []
        for line in tables.splitlines():
            lines.append(line)
            if line.startswith("  ") and line[2] != " ":
                lines.append(f"    topic: {self.topic(line.strip(' :'))}")
        connection = f'{{bootstrap_servers: "{self.address}", options: {OPTIONS}}}'
        self.project.declare("shop", "kafka", connection, "\n".join(lines))

    def topic(self, table: str) -> str:
        return f"{table}.{self.mark}"

    def send(self, table: str, *events: dict[str, Any] | bytes, partition: int = 0) -> None:
        values = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]
        Topic(self.address, self.topic(table)).send(*values, partition=partition)

    def once(self, *, accept_gap: bool = False) -> tuple[Running, list[str]]:
        said: list[str] = []
        chosen = declared(self.project.path / "ingestion", ["shop"])
        wishes = Wishes(once=True, accept_gap=accept_gap)
        return run(chosen, settings(), wishes, Event(), said.append), said

    @contextmanager
    def streaming(self, folder: Path | None = None) -> Iterator[subprocess.Popen[str]]:
        """`tarn stream` in a process of its own."""
        with subprocess.Popen(
            [*TARN, "stream", "shop"],
            cwd=folder or self.project.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "streaming shop: orders\n"
                yield process
            finally:
                process.kill()

    def loads(self) -> list[tuple[Any, ...]]:
        columns = "rows_read, rows_accepted, rows_quarantined, rows_deduplicated"
        rows = self.project.rows("tarn.loads", f"status, {columns}", "started_at")
        return [tuple(row.values()) for row in rows]

    def ids(self, table: str = "orders") -> list[int]:
        found = self.project.lake.table(f"raw_shop.{table}")
        ids = found.to_pyarrow_table(columns=["order_id"])["order_id"].to_pylist() if found else []
        return sorted(ids)

    def await_rows(self, rows: int) -> None:
        until = time.monotonic() + 60
        while len(self.ids()) < rows:
            assert time.monotonic() < until, f"{len(self.ids())} of {rows} rows"
            time.sleep(0.1)


@pytest.fixture
def shop(project: Project, address: str) -> Shop:
    return Shop(project, address)


def orders(ids: Sequence[int], **more: Any) -> list[dict[str, Any]]:
    return [{"order_id": i, "amount": 1.5, **more} for i in ids]


def test_messages_become_rows_with_their_place(shop: Shop) -> None:
    shop.declare(
        "  orders:\n    event_time: happened_at\n    partition_by: [_event_date]\n"
        "    columns: {happened_at: timestamp}"
    )
    event = {"order_id": 1, "page": {"type": "home"}, "tags": [1, 2]}
    shop.send("orders", {**event, "happened_at": "2017-12-30T23:59:59.123Z"}, partition=2)
    shop.send("orders", {**event, "order_id": 2}, partition=3)
    shop.once()
    first, second = shop.project.rows("raw_shop.orders", order="order_id")
    assert first["page__type"] == "home"
    assert json.loads(first["tags"]) == [1, 2]
    assert (first["_partition"], first["_offset"]) == (f"{shop.topic('orders')}-2", 0)
    assert str(first["happened_at"]) == "2017-12-30 23:59:59.123000"
    assert str(first["_event_date"]) == "2017-12-30"
    assert second["happened_at"] is None
    assert second["_event_date"] == second["_sent_at"].date()
    assert shop.loads() == [("loaded", 2, 2, 0, 0)]


def test_bad_messages_go_to_quarantine_with_their_place(shop: Shop) -> None:
    shop.declare(ORDERS + "\n    columns: {order_id: bigint, amount: double}")
    shop.send("orders", *orders(range(20)), b"{broken", {"amount": 2}, b"[]")
    shop.send("orders", {"order_id": 21, "amount": "much"}, partition=1)
    running, _ = shop.once()
    assert not running.failed
    assert shop.ids() == list(range(20))
    assert shop.loads() == [("loaded", 24, 20, 4, 0)]
    bad = shop.project.rows("quarantine_shop.orders", "_place, _reason", "_place")
    topic = shop.topic("orders")
    assert [row["_place"] for row in bad] == [
        *(f"{topic}-0 offset {n}" for n in (20, 21, 22)),
        f"{topic}-1 offset 0",
    ]
    assert bad[1]["_reason"] == "order_id is null"
    assert bad[3]["_reason"].startswith("amount: 'much' is not")
    shown = CliRunner().invoke(cli, ["quarantine", "show", "shop.orders"])
    assert f"{topic}-0 offset 20" in shown.output
    shop.send("orders", b"[]")
    running, _ = shop.once()
    assert not running.failed
    assert shop.loads()[-1] == ("loaded", 1, 0, 1, 0)


def test_a_row_that_passes_now_is_replayed_with_its_place(shop: Shop) -> None:
    shop.declare(ORDERS + '\n    rules: ["amount < 100"]')
    shop.send("orders", *orders(range(12)), {"order_id": 12, "amount": 200.0})
    shop.once()
    assert shop.ids() == list(range(12))
    shop.declare()
    done = CliRunner().invoke(cli, ["quarantine", "replay", "shop.orders"])
    assert done.exit_code == 0, done.output
    assert shop.ids() == list(range(13))
    row = shop.project.rows("raw_shop.orders", order="order_id desc")[0]
    assert (row["order_id"], row["_offset"]) == (12, 12)
    shop.send("orders", *orders([12, 13]))
    shop.once()
    assert shop.ids() == list(range(14))


def test_an_event_that_comes_again_is_known_after_a_restart_too(shop: Shop) -> None:
    shop.declare()
    shop.send("orders", *orders([1, 2, 1, 3]))
    shop.once()
    shop.send("orders", *orders([2, 4]), partition=1)
    shop.send("orders", *orders([5, 5, 1]), partition=2)
    shop.once()
    assert shop.ids() == [1, 2, 3, 4, 5]
    assert shop.loads() == [("loaded", 4, 3, 0, 1), ("loaded", 5, 2, 0, 3)]
    result = shop.project.load("shop")["orders"]
    assert result.status == "unchanged"


def test_what_is_new_in_messages_is_added_and_told(shop: Shop) -> None:
    shop.declare()
    shop.send("orders", *orders(range(10)))
    shop.once()
    shop.send("orders", {"order_id": None, "nonsense": 1}, *orders([10, 11], city="Ulm"))
    _, said = shop.once()
    told = [text for text in said if "new column" in text]
    assert told == ["shop.orders: new column city (text)"]
    assert "nonsense" not in shop.project.types("raw_shop.orders")
    assert shop.project.types("raw_shop.orders")["city"] == "string"


def test_drift_stops_its_table_and_no_other(shop: Shop) -> None:
    shop.declare(ORDERS + "\n  payments:\n    commit_every: 200ms")
    shop.send("orders", *orders(range(20)))
    shop.send("payments", *orders(range(20)))
    shop.once()
    shop.send("orders", *[{"number": i, "amount": 1.5} for i in range(20, 40)])
    shop.send("payments", *orders(range(20, 30)))
    running, said = shop.once()
    assert running.failed
    assert [text for text in said if text.startswith("stopped: ") and "order_id" in text]
    assert shop.ids() == list(range(20))
    assert shop.ids("payments") == list(range(30))
    shop.declare(
        ORDERS + "\n    contract: {renamed: {number: order_id}}"
        "\n  payments:\n    commit_every: 200ms"
    )
    running, _ = shop.once()
    assert not running.failed
    assert shop.ids() == list(range(40))


def test_what_some_messages_lack_is_gone_only_when_many_do(shop: Shop) -> None:
    shop.declare()
    some = [*orders(range(30), city="Bath"), *orders(range(30, 40))]
    shop.send("orders", *some)
    shop.once()
    shop.send("orders", *orders(range(40, 50)))
    assert not [text for text in shop.once()[1] if "city" in text]
    shop.send("orders", *orders(range(50, 250)))
    assert [text for text in shop.once()[1] if "column city is no longer delivered" in text]
    assert shop.ids() == list(range(250))


def test_messages_that_have_expired_are_told_and_a_gap_must_be_accepted(shop: Shop) -> None:
    shop.declare()
    shop.send("orders", *orders([1]))
    shop.once()
    # The broker keeps five megabytes of a partition.
    shop.send("orders", *orders(range(2, 9), filler="x" * 900_000))
    shop.send("orders", *orders([100]), partition=1)
    running, said = shop.once()
    assert running.failed
    assert [text for text in said if "messages have expired" in text]
    assert 2 not in shop.ids()
    running, said = shop.once(accept_gap=True)
    assert not running.failed
    assert [text for text in said if text.startswith("accepted: ")]
    kept = shop.ids()
    assert kept[0] == 1
    assert kept[-2:] == [8, 100]
    drift = shop.project.rows("tarn.drift", "change, verdict", "noticed_at")
    assert [row["verdict"] for row in drift if row["change"] == "lost"] == ["blocked", "accepted"]
    shop.once()
    assert shop.ids() == kept


def test_what_waits_in_memory_is_bounded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.declare(ORDERS.replace("200ms", "1h"))
    monkeypatch.setattr(consumer, "MOST_BYTES", 200_000)
    monkeypatch.setattr(consumer, "AT_ONCE", 500)
    most: list[int] = []
    took = consumer._Table.take

    def take(table: consumer._Table) -> Any:
        most.append(table.bytes)
        return took(table)

    monkeypatch.setattr(consumer._Table, "take", take)
    shop.send("orders", *orders(range(5_000)))
    shop.once()
    assert shop.ids() == list(range(5_000))
    assert len(most) > 2
    assert max(most) < 400_000


def test_a_stop_commits_what_was_read(shop: Shop) -> None:
    shop.declare(ORDERS.replace("200ms", "1h"))
    shop.send("orders", *orders(range(100)))
    stop = Event()

    def watch(running: Running) -> None:
        while running.streams["shop"].tables["orders"].rows < 100 and not stop.wait(0.05):
            assert shop.ids() == []
        stop.set()

    running = run(
        declared(shop.project.path / "ingestion"), settings(), Wishes(), stop, print, watch
    )
    assert not running.failed
    assert shop.ids() == list(range(100))
    assert shop.loads() == [("loaded", 100, 100, 0, 0)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(shop: Shop, number: signal.Signals) -> None:
    shop.declare()
    with shop.streaming() as process:
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_a_second_consumer_of_this_machine_is_refused(shop: Shop) -> None:
    shop.declare()
    shop.send("orders", *orders(range(10)))
    with shop.streaming() as process:
        shop.await_rows(10)
        second = subprocess.run(
            [*TARN, "stream", "shop"],
            cwd=shop.project.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert f"process {process.pid} streams it already" in second.stderr
        skipped = subprocess.run(
            [*TARN, "ingest"], cwd=shop.project.path, capture_output=True, text=True, check=False
        )
        assert skipped.returncode == 0
        assert f"skipped: process {process.pid} streams it" in skipped.stdout


def test_consumers_of_two_machines_share_the_partitions(shop: Shop, tmp_path: Path) -> None:
    shop.declare(ORDERS.replace("    primary_key: [order_id]\n", ""))
    other = tmp_path / "other"
    (other / "ingestion").mkdir(parents=True)
    (other / "dbt_project.yml").touch()
    text = (shop.project.path / "ingestion/shop.yml").read_text()
    (other / "ingestion/shop.yml").write_text(text)
    (other / "lake").symlink_to(shop.project.path / "lake")
    for i in range(4):
        shop.send("orders", *orders(range(i * 100, i * 100 + 50)), partition=i)
    with shop.streaming() as first:
        shop.await_rows(200)
        with shop.streaming(other) as second:
            for part in range(10):
                for i in range(4):
                    start = i * 100 + 50 + part * 5
                    shop.send("orders", *orders(range(start, start + 5)), partition=i)
                time.sleep(0.5)
            shop.await_rows(400)
            for process in (first, second):
                process.send_signal(signal.SIGTERM)
                said, _ = process.communicate(timeout=30)
                assert process.returncode == 0, said
    assert shop.ids() == list(range(400))


def test_a_topic_is_looked_at_without_reading_on(shop: Shop) -> None:
    shop.declare()
    shop.send("orders", *orders(range(5)), b"{broken")
    done = CliRunner().invoke(cli, ["source", "preview", "shop"])
    assert done.exit_code == 0, done.output
    assert "raw_shop.orders: 5 rows" in done.output
    assert "1 row would go to quarantine" in done.output
    done = CliRunner().invoke(cli, ["source", "check", "shop"])
    assert done.exit_code == 0, done.output
    assert "4 partitions, 6 messages" in done.output
    shop.once()
    assert shop.ids() == list(range(5))


def test_a_new_system_is_declared_from_its_topics(shop: Shop) -> None:
    shop.send("orders", *orders(range(3)))
    given = ["--connection", shop.address, "--tables", f"orders_{shop.mark}"]
    done = CliRunner().invoke(cli, ["source", "new", "kafka", "shop", *given])
    assert done.exit_code == 0, done.output
    (wanted,) = declared(shop.project.path / "ingestion", ["shop"])
    assert isinstance(wanted.system, KafkaSystem)
    assert wanted.system.topic(f"orders_{shop.mark}") == shop.topic("orders")
    model = shop.project.path / f"models/staging/shop/stg_shop__orders_{shop.mark}.sql"
    assert "amount" in model.read_text()


def test_a_broker_that_is_away_is_told_in_one_message(project: Project) -> None:
    project.declare("shop", "kafka", "{bootstrap_servers: '127.0.0.1:1'}", "  orders: {}")
    done = CliRunner().invoke(cli, ["source", "check", "shop"])
    assert done.exit_code == 1
    assert "Kafka: " in done.output
    assert "check bootstrap_servers and the broker" in done.output


def test_rows_are_the_tables_types(shop: Shop) -> None:
    shop.declare(ORDERS + "\n    columns: {amount: 'decimal(12,2)'}")
    shop.send("orders", *orders([1]))
    shop.once()
    assert shop.project.types("raw_shop.orders")["amount"] == str(pa.decimal128(12, 2))
