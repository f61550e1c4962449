"""What tests of alerts share: events in a lake, and an evaluator with a clock of its own."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import TypeAdapter

from tarn.serving.alerts.declaration import Alert
from tarn.serving.alerts.delivery import Open
from tarn.serving.alerts.findings import Declared
from tarn.serving.alerts.journal import ALERTS, Event, Journal
from tarn.serving.alerts.outbox import Outbox
from tarn.serving.alerts.watching import Evaluator
from tarn.storage.duck import prepare, select_from, show
from tarn.storage.lake import Lake
from tarn.storage.writer import write

EVENTS = "raw_shop.events"
NOW = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
"""Commits are made now: clocks of tests go on from here."""
COUNT = f"""
    select count(*) from {EVENTS}
    where kind = 'order' and occurred_at >= $window_start and occurred_at < $window_end
"""
WEBHOOK = {"kind": "webhook", "url": "${HOOK}"}


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def declared(name: str = "no_orders", **run: Any) -> Declared:
    """An alert: fewer than one order in five minutes."""
    given = {
        "kind": "alert", "title": "No orders", "sql": COUNT, "window": "5m", "floor": 1,
        "resolve_after": "0s", "notify": [WEBHOOK], **run,
    }  # fmt: skip
    alert = TypeAdapter(Alert).validate_python(given)
    return Declared(name, alert, alert.sql or "", f"models/exposures/{name}.yml: {name}")


def happen(lake: Lake, kind: str, *moments: datetime, sent_at: datetime | None = None) -> None:
    """Events of a kind, committed now."""
    number = len(moments)
    rows = pa.table(
        {
            "kind": [kind] * number,
            "occurred_at": pa.array(moments, pa.timestamp("us")),
            "_partition": ["0"] * number,
            "_offset": pa.array(range(number), pa.int64()),
            "_sent_at": pa.array(
                [sent_at or max(each, NOW) for each in moments], pa.timestamp("us")
            ),
        }
    )
    write(lake, EVENTS, rows, mode="append")


def connected(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A connection to all tables as they are."""
    connection = duckdb.connect()
    if not lake.is_local:
        prepare(connection, lake)
    for name in lake.names():
        table = lake.table(name)
        assert table is not None
        show(connection, name, select_from(table))
    return connection


class Bench:
    """An evaluator, what it sent and what it said."""

    def __init__(
        self,
        lake: Lake,
        alerts: Sequence[Declared],
        machine: str = "one",
        send: Callable[[Event], None] | None = None,
    ) -> None:
        self.lake, self.sent, self.said = lake, list[Event](), list[str]()
        self.journal = Journal(lake, machine)
        channel = Open("webhook HOOK", send or self.sent.append)
        channels: Mapping[str, Sequence[Open]] = {each.name: [channel] for each in alerts}
        outbox = Outbox(self.journal, channels, self.said.append)
        self.evaluator = Evaluator(
            alerts, lake, self.journal, outbox, self.said.append, lambda: connected(lake)
        )

    def at(self, moment: datetime) -> list[str]:
        """Evaluate and send at a moment; what was sent, as condition and change."""
        before = len(self.sent)
        self.evaluator.round(moment)
        self.evaluator.outbox.flush(moment)
        return [f"{each.condition}: {each.change}" for each in self.sent[before:]]


def history(lake: Lake) -> list[dict[str, Any]]:
    """The rows of tarn.alerts."""
    table = lake.table(ALERTS)
    assert table is not None
    rows: list[dict[str, Any]] = table.to_pyarrow_table().sort_by("sequence").to_pylist()
    return rows
