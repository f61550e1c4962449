"""The project's own alerts on the demo's streams: each measures, an ordinary hour rings none."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from tarn.serving.alerts.declaration import Alert
from tarn.serving.alerts.hours import open_since
from tarn.serving.alerts.measuring import Measured, measure
from tarn.serving.declarations import read_exposures
from tarn.storage.lake import Lake
from tarn.storage.live import Live

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def alerts(built_project: Path) -> dict[str, Alert]:
    manifest = json.loads((built_project / "target/manifest.json").read_text())
    found = read_exposures(manifest, built_project)
    return {each.name: each.run for each in found if isinstance(each.run, Alert)}


@pytest.fixture(scope="module")
def connection(built_project: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with Live(Lake(str(built_project / "lake"))).cursor() as cursor:
        yield cursor


@pytest.fixture(scope="module")
def measured(
    alerts: dict[str, Alert], connection: duckdb.DuckDBPyConnection
) -> dict[str, list[Measured]]:
    """By alert, every hour of the demo's streams in which its business is open."""
    sql = "select min(occurred_at), max(occurred_at) from marts.fct_order_events"
    [(first, last)] = connection.execute(sql).fetchall()
    found: dict[str, list[Measured]] = {}
    for name, alert in alerts.items():
        assert alert.sql is not None
        moments = (first + number * HOUR for number in range(1, (last - first) // HOUR))
        each = [measure(alert, alert.sql, connection, moment) for moment in moments]
        found[name] = [one for one in each if one.window[0] >= first and _is_open(alert, one)]
    return found


def _is_open(alert: Alert, one: Measured) -> bool:
    if alert.business_hours is None:
        return True
    since = open_since(alert.business_hours, one.window[1])
    return since is not None and since <= one.window[0]


def test_each_alert_measures_something(measured: dict[str, list[Measured]]) -> None:
    assert set(measured) == {
        "no_orders_alert", "payment_failures_alert", "fraud_alert", "late_deliveries_alert"
    }  # fmt: skip
    for name, found in measured.items():
        assert any(one.value for one in found), name


@pytest.mark.parametrize(
    "name", ["no_orders_alert", "payment_failures_alert", "late_deliveries_alert"]
)
def test_an_ordinary_day_rings_no_alert(measured: dict[str, list[Measured]], name: str) -> None:
    assert [one for one in measured[name] if one.is_out] == []


def test_the_frauds_of_the_demo_ring(measured: dict[str, list[Measured]]) -> None:
    assert any(one.is_out for one in measured["fraud_alert"])


def test_an_hour_without_events_rings_for_no_orders_alone(
    alerts: dict[str, Alert], connection: duckdb.DuckDBPyConnection
) -> None:
    moment = datetime(2019, 1, 2, 18)
    for name, alert in alerts.items():
        assert alert.sql is not None
        one = measure(alert, alert.sql, connection, moment)
        assert bool(one.is_out) == (name == "no_orders_alert")
