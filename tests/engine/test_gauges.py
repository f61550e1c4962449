"""How streams are watched: metrics as Prometheus reads them, and what `tarn status` tells."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest
from click.testing import CliRunner, Result
from playwright.sync_api import Browser
from prometheus_client.parser import text_string_to_metric_families

from tarn.cli import cli
from tarn.errors import TarnError
from tarn.ingestion.declarations import declared
from tarn.ingestion.landed import Desk
from tarn.ingestion.ledger import Counts, TableLoad, record
from tarn.ingestion.status import status
from tarn.ingestion.streams import gauges as module
from tarn.ingestion.streams.gauges import Gauges, Metrics
from tarn.serving.landing import Release
from tarn.serving.loads import loads_page
from tarn.storage.clock import now
from tarn.storage.lake import Lake
from tarn.storage.loads import TableStatus
from tarn.storage.streams import state_of
from tests.engine.browser import DESKTOP, PHONE, chromium, opened
from tests.engine.ingesting import Project, project

__all__ = ["project"]

SENT = datetime(2026, 11, 22, 12)
MICROS = int((SENT - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
FIRST, SECOND = ("orders", "orders-2"), ("orders", "orders-10")
TABLES = "  orders: {subscription: orders}\n  clicks: {subscription: clicks}"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word is kept, whenever it comes, and a second is never over."""
    monkeypatch.setattr(module, "_EVERY", 0.0)
    monkeypatch.setattr(module, "monotonic", lambda: 0.0)


@pytest.fixture
def shop(project: Project) -> Project:
    project.declare("shop", "pubsub", "{project: p}", TABLES)
    return project


def tell(gauges: Gauges) -> None:
    """A busy second."""
    gauges.read(FIRST, 100)
    gauges.read(SECOND, 20)
    gauges.event(FIRST, MICROS)
    gauges.event(SECOND, MICROS - 5_000_000)
    gauges.committed("orders", 117, 2, 1, 0.3)
    gauges.lag(FIRST, 7)
    gauges.lag(SECOND, None)
    gauges.trouble(None)


def found(project: Project, at: datetime | None = None) -> dict[str, TableStatus]:
    systems = declared(project.path / "ingestion")
    return {each.table: each for each in status(project.lake, systems, at or now())}


def test_prometheus_reads_what_was_told(lake: Lake) -> None:
    metrics = Metrics()
    gauges = Gauges(lake, "shop", metrics)
    tell(gauges)
    with metrics.served(0) as port, urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = {
            (sample.name.removeprefix("tarn_stream_"), sample.labels.get("partition", "")): sample
            for family in families
            for sample in family.samples
            if "le" not in sample.labels
        }
    assert samples["messages_read_total", "orders-2"].value == 100
    assert samples["messages_read_total", "orders-2"].labels["system"] == "shop"
    assert samples["rows_committed_total", ""].value == 117
    assert samples["rows_quarantined_total", ""].value == 2
    assert samples["rows_deduplicated_total", ""].value == 1
    assert samples["commit_seconds_count", ""].value == 1
    assert samples["lag_messages", "orders-2"].value == 7
    assert samples["lag_messages", "orders-10"].value != samples["lag_messages", "orders-10"].value
    assert samples["last_event_timestamp_seconds", "orders-2"].value == MICROS / 1e6
    assert samples["last_commit_timestamp_seconds", ""].value > MICROS / 1e6 - 1e9
    assert samples["up", ""].value == 1


def test_trouble_is_down_and_a_lost_partition_is_no_longer_told(lake: Lake) -> None:
    gauges = Gauges(lake, "shop")
    tell(gauges)
    gauges.trouble("the broker does not answer")
    gauges.forget(FIRST)
    registry = gauges.metrics.registry
    labels = {"system": "shop", "table": "orders", "partition": "orders-2"}
    assert registry.get_sample_value("tarn_stream_up", {"system": "shop"}) == 0
    assert registry.get_sample_value("tarn_stream_lag_messages", labels) is None


def test_a_port_that_is_taken_is_refused_in_a_sentence() -> None:
    metrics = Metrics()
    taken = pytest.raises(TarnError, match="Address already in use")
    with metrics.served(0) as port, taken, Metrics().served(port):
        pass


@pytest.mark.everywhere
def test_a_new_run_remembers_the_last_event_and_commit(lake: Lake) -> None:
    tell(Gauges(lake, "shop"))
    again = Gauges(lake, "shop")
    again.lag(FIRST, 3)
    state = state_of(lake, "shop")
    assert state is not None
    assert [(each.partition, each.lag, each.last_event_at) for each in state.partitions] == [
        ("orders-2", 3, SENT)
    ]
    assert state.partitions[0].last_commit_at is not None


def test_what_cannot_be_kept_stops_nothing(lake: Lake) -> None:
    Path(lake.root, "_tarn").mkdir(parents=True)
    Path(lake.root, "_tarn/streams").touch()
    gauges = Gauges(lake, "shop")
    tell(gauges)
    gauges.close()
    Path(lake.root, "_tarn/streams").unlink()
    Path(lake.root, "_tarn/streams").mkdir()
    Path(lake.root, "_tarn/streams/shop.json").write_text("{")
    assert state_of(lake, "shop") is None


def test_status_tells_lag_rate_and_times(shop: Project) -> None:
    assert {each.state for each in found(shop).values()} == {"never"}
    gauges = Gauges(shop.lake, "shop")
    tell(gauges)
    orders = found(shop)["orders"]
    assert orders.state == "ok"
    assert found(shop)["clicks"].state == "never"
    stream = orders.stream
    assert stream is not None
    assert (stream.is_running, stream.lag, stream.last_event_at) == (True, 7, SENT)
    assert stream.rate == 120
    assert [each.partition for each in stream.partitions] == ["orders-2", "orders-10"]


def test_a_stream_that_is_not_heard_of_is_late(shop: Project) -> None:
    gauges = Gauges(shop.lake, "shop")
    tell(gauges)
    state = state_of(shop.lake, "shop")
    assert state is not None
    later = state.written_at + timedelta(minutes=5)
    orders = found(shop, later)["orders"]
    assert (orders.state, orders.late_seconds) == ("late", 300)
    assert orders.stream is not None
    assert not orders.stream.is_running
    gauges.close()
    assert found(shop)["orders"].state == "late"
    # What `--once` or a schedule reads is not expected to run.
    once = Gauges(shop.lake, "shop", is_continuous=False)
    tell(once)
    once.close()
    assert found(shop, later)["orders"].state == "never"
    desk = Desk(shop.lake, shop.path)
    load = TableLoad("shop", "orders", "loaded", Counts(5, 5), later, later)
    record(desk, "0", [load])
    desk.close()
    assert found(shop, later)["orders"].state == "ok"


def test_trouble_and_failures_of_this_run_are_told(shop: Project) -> None:
    gauges = Gauges(shop.lake, "shop")
    tell(gauges)
    gauges.trouble("the broker does not answer")
    orders = found(shop)["orders"]
    assert (orders.state, orders.error) == ("failed", "the broker does not answer")
    gauges.trouble(None)
    assert found(shop)["orders"].state == "ok"
    desk = Desk(shop.lake, shop.path)
    record(desk, "0", [TableLoad("shop", "orders", "failed", Counts(), now(), now(), "frozen")])
    desk.close()
    orders = found(shop)["orders"]
    assert (orders.state, orders.error) == ("failed", "frozen")
    tell(Gauges(shop.lake, "shop"))
    assert found(shop)["orders"].state == "ok"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["status", *arguments])


def test_the_terminal_and_json_tell_the_same(shop: Project) -> None:
    shop.declare("till", "pubsub", "{project: p}", "  receipts: {subscription: receipts}")
    tell(Gauges(shop.lake, "shop"))
    everything = [line.split() for line in run().stdout.splitlines()]
    row = next(line for line in everything if line[:1] == ["shop.orders"])
    assert row[1:5] == ["7", "120.0", "2026-11-22", "12:00:00"]
    assert not any(line[:1] == ["orders-2"] for line in everything)
    one = [line.split() for line in run("shop").stdout.splitlines()]
    assert next(line for line in one if line[:1] == ["orders-10"])[1:3] == ["-", "20.0"]
    told = [json.loads(line) for line in run("--json").stdout.splitlines()]
    orders = next(each for each in told if each["table"] == "orders")
    assert orders["stream"]["lag"] == 7
    assert orders["stream"]["partitions"][0]["partition"] == "orders-2"
    assert next(each for each in told if each["system"] == "till")["stream"] is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_tells_how_streams_keep_up(
    shop: Project, browser: Browser, size: tuple[int, int], tmp_path: Path
) -> None:
    tell(Gauges(shop.lake, "shop"))
    page = tmp_path / "loads.html"
    release = Release(1, "today", (("marts", "x", 1),))
    tables = list(found(shop).values())
    page.write_text(loads_page(tables, now(), project="Shop", release=release))
    with opened(browser, page, size) as seen:
        assert seen.errors == []
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        section = seen.page.locator("section[aria-labelledby=streams]")
        assert "Running" in section.inner_text()
        assert section.locator("tbody tr").count() == 2
