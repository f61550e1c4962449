"""Marts made of streams, built as events come late, twice and out of order: equal to the row to
marts built at once, and to what plain Python makes of the same messages."""

import math
import os
import random
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tarn.storage.lake import Lake
from tarn.storage.live import live
from tests.engine.conftest import BIN, ROOT
from tests.engine.shop_events import Row, Shop, land

PARTS = (
    "dbt_project.yml", "profiles.yml", "storage.yml", "models", "seeds", "snapshots", "macros",
    "tarn", "tests/singular",
)  # fmt: skip
MARTS = ("fct_web_sessions", "fct_web_orders", "fct_payments", "fct_sign_ups", "fct_deliveries")
VIEWS = (
    "staging.web_shop", "staging.payments", "staging.sign_ups", "staging.vans",
    "intermediate.online",
)  # fmt: skip
HALF_AN_HOUR = timedelta(minutes=30)
LOADED = [datetime(2026, 1, 1, 12, minute) for minute in (0, 1, 1, 2, 3)]
"""When each part came. The second and the third are of one load, of which a part was built."""


def rows(folder: Path, name: str) -> list[Row]:
    """A table's rows, by Polars."""
    return pl.read_delta(str(folder / "lake" / name.replace(".", "/"))).to_dicts()


def once(events: Sequence[Row], *key: str) -> list[Row]:
    """Each event once, the copy that came first."""
    first: dict[tuple[Any, ...], Row] = {}
    for event in sorted(events, key=lambda e: (e["_loaded_at"], e["_sent_at"], str(e["_offset"]))):
        first.setdefault(tuple(event[k] for k in (*key, "occurred_at")), event)
    return list(first.values())


def grouped(events: Sequence[Row], key: str) -> Mapping[Any, list[Row]]:
    groups = defaultdict(list)
    for event in events:
        groups[event[key]].append(event)
    return groups


def sessions(clicks: Sequence[Row]) -> dict[str, tuple[Any, ...]]:
    """First click, clicks and times of each session."""
    found: list[list[Row]] = []
    for visits in grouped(once(clicks, "event_id"), "visitor_id").values():
        visits.sort(key=lambda click: (click["occurred_at"], click["event_id"]))
        found.append(visits[:1])
        for before, click in pairwise(visits):
            if click["occurred_at"] - before["occurred_at"] > HALF_AN_HOUR:
                found.append([])
            found[-1].append(click)
    return {
        clicks[0]["event_id"]: (
            clicks[0]["visitor_id"],
            clicks[0]["referrer"],
            clicks[-1]["page__type"],
            max((c["household_id"] for c in clicks if c["household_id"] is not None), default=None),
            len(clicks),
            clicks[0]["occurred_at"],
            clicks[-1]["occurred_at"],
            max(click["_loaded_at"] for click in clicks),
        )
        for clicks in found
    }


def kilometres(one: Row, other: Row) -> float:
    """By the angle between the two places as vectors, which is another way than haversine."""
    (a, b), (c, d) = (
        (math.radians(p["latitude"]), math.radians(p["longitude"])) for p in (one, other)
    )
    here, there = (
        (math.cos(x) * math.cos(y), math.cos(x) * math.sin(y), math.sin(x))
        for x, y in ((a, b), (c, d))
    )
    return 6371.0088 * 2 * math.asin(min(1, math.dist(here, there) / 2))


def drives(positions: Sequence[Row]) -> dict[int, tuple[int, float]]:
    """Positions and kilometres of each order."""
    carrying = [p for p in once(positions, "van_id", "sequence") if p["order_id"] is not None]
    driven = {}
    for order, places in grouped(carrying, "order_id").items():
        places.sort(key=lambda place: (place["van_id"], place["occurred_at"], place["sequence"]))
        legs = [kilometres(a, b) for a, b in pairwise(places) if a["van_id"] == b["van_id"]]
        driven[order] = (len(places), sum(legs))
    return driven


def steps(events: Sequence[Row]) -> dict[int, tuple[str, dict[str, datetime]]]:
    """Each order's last step, and when each step was first taken."""
    ranks = ["placed", "picked", "dispatched", "delivered", "cancelled"]
    found = {}
    for order, taken in grouped(once(events, "event_id"), "order_id").items():
        taken.sort(key=lambda e: (e["occurred_at"], ranks.index(e["event_type"])))
        times = {e["event_type"]: e["occurred_at"] for e in reversed(taken)}
        found[order] = (taken[-1]["event_type"], times)
    return found


def check(folder: Path) -> None:
    """Hold the marts of a lake against its raw tables."""
    raw = {
        name: rows(folder, f"raw_{name}")
        for name in ("web_shop.clicks", "web_shop.orders", "payments.payments", "vans.positions")
    }
    columns = (
        "visitor_id", "referrer", "last_page_type", "household_id", "click_count", "started_at",
        "ended_at", "loaded_at",
    )  # fmt: skip
    found = rows(folder, "marts.fct_web_sessions")
    assert {row["session_id"]: tuple(row[c] for c in columns) for row in found} == sessions(
        raw["web_shop.clicks"]
    )
    orders = {row["order_id"]: row for row in rows(folder, "marts.fct_web_orders")}
    taken = steps(raw["web_shop.orders"])
    assert {order: row["order_status"] for order, row in orders.items()} == {
        order: last for order, (last, _) in taken.items()
    }
    for order, (_, times) in taken.items():
        for step in ("placed", "picked", "dispatched", "delivered", "cancelled"):
            assert orders[order][f"{step}_at"] == times.get(step)

    statuses = grouped(once(raw["payments.payments"], "payment_id", "status"), "payment_id")
    payments = {row["payment_id"]: row for row in rows(folder, "marts.fct_payments")}
    assert payments.keys() == statuses.keys()
    for payment, events in statuses.items():
        happened = {event["status"] for event in events}
        assert payments[payment]["is_declined"] == ("declined" in happened)
        assert payments[payment]["is_refunded"] == ("refunded" in happened)
        assert payments[payment]["paid_at"] == min(event["occurred_at"] for event in events)

    deliveries = {row["order_id"]: row for row in rows(folder, "marts.fct_deliveries")}
    driven = drives(raw["vans.positions"])
    left = {order for order, (_, times) in taken.items() if {"dispatched", "delivered"} & {*times}}
    assert deliveries.keys() == left | driven.keys()
    for order, row in deliveries.items():
        count, distance = driven.get(order, (0, 0.0))
        assert row["position_count"] == count
        assert float(row["distance_km"]) == pytest.approx(distance, abs=0.001)
        if row["delivered_at"] is not None:
            late = (row["delivered_at"] - row["promised_at"]).total_seconds() / 60
            assert row["minutes_late"] == pytest.approx(late, abs=0.001)
            assert row["is_late"] == (late > 0)


class Project:
    """The project's own models, in a folder with a lake of their own."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env, self.lake = folder, env, Lake(str(folder / "lake"))
        (folder / "lake").mkdir(parents=True)
        (folder / "tests").mkdir()
        for part in PARTS:
            os.symlink(ROOT / part, folder / part)

    def dbt(self, *arguments: str) -> None:
        done = subprocess.run(
            [str(BIN / "dbt"), "--quiet", *arguments],
            cwd=self.folder, env=self.env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def sessions(self) -> set[str]:
        return {row["session_id"] for row in rows(self.folder, "marts.fct_web_sessions")}

    def versions(self) -> list[int]:
        return [table.version() for name in MARTS if (table := self.lake.table(f"marts.{name}"))]

    def contents(self) -> dict[str, list[str]]:
        return {name: sorted(map(repr, rows(self.folder, f"marts.{name}"))) for name in MARTS}


def parts(seed: int) -> list[list[tuple[str, Row]]]:
    """What comes, in parts as long as there are loads; a twentieth only in the last of all."""
    chance, coming = random.Random(seed), Shop(seed).arrivals()
    withheld = [event for event in coming if chance.random() < 0.05]
    kept = [event for event in coming if event not in withheld]
    size = len(kept) // (len(LOADED) - 1) + 1
    return [*(kept[i : i + size] for i in range(0, len(kept), size)), withheld]


def test_marts_built_as_events_come_are_those_built_at_once(
    tmp_path: Path, project_env: Mapping[str, str]
) -> None:
    project = Project(tmp_path / "project", project_env)
    land(project.lake, [], LOADED[0])
    selected: Sequence[str] = VIEWS
    seen: set[str] = set()
    for part, loaded_at in zip(parts(1), LOADED, strict=True):
        land(project.lake, part, loaded_at)
        project.dbt("run", "--select", *selected, *MARTS)
        check(project.folder)
        selected, seen = (), seen | project.sessions()
    assert seen > project.sessions()  # Some were joined, and went.
    before, versions = project.contents(), project.versions()
    project.dbt("run", "--select", *MARTS)
    assert project.versions() == versions
    project.dbt("run", "--full-refresh", "--select", *MARTS)
    assert project.contents() == before


def reported(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a query of the operational views answers."""
    with live(Lake(str(folder / "lake"))) as connection:
        return connection.execute(sql).fetchall()


def floored(moment: datetime, minutes: int) -> datetime:
    return moment.replace(minute=moment.minute // minutes * minutes, second=0, microsecond=0)


def check_orders(folder: Path) -> None:
    """Hold what is told of orders, minute by minute and beside the tills, against raw tables."""
    events = once(rows(folder, "raw_web_shop.orders"), "event_id")
    placed = Counter(floored(e["occurred_at"], 1) for e in events if e["event_type"] == "placed")
    minutes = reported(
        folder, "select minute_start_at, order_count from outputs.rpt_orders_per_minute order by 1"
    )
    assert {minute: count for minute, count in minutes if count} == placed
    starts = [start for start, _ in minutes]
    assert {after - before for before, after in pairwise(starts)} == {timedelta(minutes=1)}
    assert starts[0] == floored(min(event["occurred_at"] for event in events), 1)
    assert starts[-1] == floored(
        max(datetime(2018, 1, 1), *(event["occurred_at"] for event in events)), 1
    )
    ordered = {event["order_id"] for event in events}
    rung_up = {receipt["order_id"] for receipt in rows(folder, "raw_pos.web_receipts")}
    sides = reported(
        folder, "select order_id, has_events, has_receipt from outputs.rpt_order_reconciliation"
    )
    assert sorted(sides) == sorted((o, o in ordered, o in rung_up) for o in ordered | rung_up)
    statuses = "select distinct reconciliation_status from outputs.rpt_order_reconciliation"
    lost = reported(folder, f"{statuses} where not (has_events and has_receipt)")
    assert {"events lost", "receipt lost"} <= {status for (status,) in lost}
    unequal = "select count(*) from outputs.rpt_order_reconciliation where difference_amount != 0"
    assert reported(folder, unequal) == [(0,)]


def check_payments(folder: Path) -> None:
    """Hold what is told of payments that fail and of those from far off against raw tables."""
    events = once(rows(folder, "raw_payments.payments"), "payment_id", "status")
    tried = [event for event in events if event["status"] in ("authorized", "declined")]
    attempts = Counter(floored(event["occurred_at"], 15) for event in tried)
    declined = Counter(
        floored(event["occurred_at"], 15) for event in tried if event["status"] == "declined"
    )
    quarters = reported(
        folder,
        "select quarter_start_at, attempt_count, declined_count, failure_rate"
        " from outputs.rpt_payment_failure_rate",
    )
    assert {start: count for start, count, _, _ in quarters if count} == attempts
    assert {start: count for start, _, count, _ in quarters if count} == declined
    for _, count, failed, rate in quarters:
        assert rate == (round(failed / count, 4) if count else None)
    homes = {
        event["household_id"]: {
            "latitude": event["delivery__latitude"],
            "longitude": event["delivery__longitude"],
        }
        for event in rows(folder, "raw_web_shop.orders")
    }
    far = {
        (event["payment_id"], event["status"])
        for event in tried
        if (home := homes.get(event["household_id"]))
        and kilometres(
            home,
            {"latitude": event["place__latitude"], "longitude": event["place__longitude"]},
        )
        > 100
    }
    told = "select payment_id, payment_status from outputs.rpt_fraud_signals"
    assert far
    assert {*reported(folder, f"{told} where is_unusual_distance")} == far


def check_vans(folder: Path) -> None:
    """Hold where vans are against the last that they sent."""
    last: dict[str, Row] = {}
    for event in rows(folder, "raw_vans.positions"):
        at = event["occurred_at"], event["sequence"]
        seen = last.get(event["van_id"])
        if seen is None or at > (seen["occurred_at"], seen["sequence"]):
            last[event["van_id"]] = event
    moment = max(datetime(2018, 1, 1), *(event["occurred_at"] for event in last.values()))
    day = {e["van_id"]: e for e in last.values() if moment - e["occurred_at"] < timedelta(days=1)}
    columns = "van_id, latitude, longitude, order_id, signal_at, signal_age_seconds"
    assert sorted(reported(folder, f"select {columns} from outputs.rpt_live_vehicles")) == sorted(
        (
            van,
            event["latitude"],
            event["longitude"],
            event["order_id"],
            event["occurred_at"],
            round((moment - event["occurred_at"]).total_seconds()),
        )
        for van, event in day.items()
    )


@pytest.mark.parametrize("check_reports", [check_orders, check_payments, check_vans])
def test_reports_of_the_demo_are_its_messages(
    check_reports: Callable[[Path], None], built_project: Path
) -> None:
    check_reports(built_project)


def test_marts_of_the_demo_are_its_messages(built_project: Path) -> None:
    check(built_project)
