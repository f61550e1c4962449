"""`tarn.alerts`: what has happened to each alert, and whether it has been told.

Rows of one alert are numbered without gaps, and a number is taken once: of two evaluators, even on
two machines, that find the same change, one writes the row and sends it, and the other sees that
the number is taken. A row is written before it is sent and completed after, so a process that is
killed between them sends it once more, and never not at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, cast

import pyarrow as pa

from tarn.serving.alerts.declaration import Alert
from tarn.serving.alerts.findings import Condition
from tarn.serving.alerts.states import Change, Incident, Step, after
from tarn.storage.duck import select_from, session
from tarn.storage.lake import Lake
from tarn.storage.writer import write

ALERTS = "tarn.alerts"
TAKE_OVER = timedelta(minutes=5)
"""What another machine has not sent by then is sent by this one."""
Delivery = Literal["pending", "delivered", "none", "muted", "given up"]
_KEY = ("alert", "sequence")
_TEXT, _NUMBER, _INSTANT = pa.string(), pa.float64(), pa.timestamp("us")
_SCHEMA = pa.schema(
    {
        "alert": _TEXT,
        "sequence": pa.int64(),
        "change": _TEXT,
        "condition": _TEXT,
        "severity": _TEXT,
        "title": _TEXT,
        "message": _TEXT,
        "happened_at": _INSTANT,
        "opened_at": _INSTANT,
        "value": _NUMBER,
        "usual": _NUMBER,
        "lower_bound": _NUMBER,
        "upper_bound": _NUMBER,
        "window_start": _INSTANT,
        "window_end": _INSTANT,
        "muted_until": _INSTANT,
        "evaluator": _TEXT,
        "delivery": _TEXT,
        "delivered_to": _TEXT,
        "delivered_at": _INSTANT,
    }
)


@dataclass(frozen=True)
class Event:
    """One row: a change of an alert. Times are UTC without zone."""

    alert: str
    sequence: int
    """Within the alert."""
    change: Change
    condition: Condition | None
    """None of a mute or a test."""
    severity: str
    title: str
    message: str
    happened_at: datetime
    opened_at: datetime | None = None
    """When the condition opened."""
    value: float | None = None
    usual: float | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None
    window_start: datetime | None = None
    window_end: datetime | None = None
    muted_until: datetime | None = None
    evaluator: str = ""
    """Machine that made and sends it."""
    delivery: Delivery = "none"
    delivered_to: tuple[str, ...] = ()
    """Channels that have it; JSON in the table."""
    delivered_at: datetime | None = None
    """When the last of them had it."""


@dataclass
class Standing:
    """Where one alert stands."""

    sequence: int = 0
    incidents: dict[Condition, Incident] = field(default_factory=dict)
    muted_until: datetime | None = None

    def is_muted(self, at: datetime) -> bool:
        return self.muted_until is not None and at < self.muted_until


class Journal:
    """The table, and what follows from it. One thread uses it."""

    def __init__(self, lake: Lake, evaluator: str) -> None:
        self.lake, self.evaluator = lake, evaluator
        self.standings: dict[str, Standing] = {}
        self._pending: dict[tuple[str, int], Event] = {}
        self._version = -1

    def refresh(self) -> Sequence[Event]:
        """Take in what others have written: another evaluator, or who mutes. Gives all there is,
        or nothing if nothing is new."""
        table = self.lake.table(ALERTS)
        if table is None or table.version() == self._version:
            return ()
        sql = f"select {', '.join(_SCHEMA.names)} from ({select_from(table)}) order by sequence"
        with session(self.lake) as connection:
            rows = connection.execute(sql).to_arrow_table().to_pylist()
        self.standings, self._pending = {}, {}
        events = [_event(row) for row in rows]
        for event in events:
            self._take(event)
        self._version = table.version()
        return events

    def of(self, alert: str) -> Standing:
        return self.standings.setdefault(alert, Standing())

    def pending(self, at: datetime) -> Iterator[Event]:
        """What this evaluator is to send, in order."""
        for event in sorted(self._pending.values(), key=lambda each: each.happened_at):
            if event.evaluator == self.evaluator or at - event.happened_at > TAKE_OVER:
                yield event

    def step(self, name: str, alert: Alert, step: Step, at: datetime) -> Event | None:
        """Record a change of a condition."""
        event = Event(
            name,
            0,
            step.change,
            step.condition,
            alert.severity,
            alert.title,
            step.message,
            at,
            step.opened_at,
            delivery=self._delivery(name, alert, step.is_told, at),
        )
        if step.finding and (found := step.finding.measured):
            event = replace(
                event,
                value=found.value,
                usual=found.usual,
                lower_bound=found.low,
                upper_bound=found.high,
                window_start=found.window[0],
                window_end=found.window[1],
            )
        return self.record(event)

    def _delivery(self, name: str, alert: Alert, is_told: bool, at: datetime) -> Delivery:
        if not is_told:
            return "none"
        if self.of(name).is_muted(at):
            return "muted"
        return "pending" if alert.notify else "none"

    def record(self, event: Event) -> Event | None:
        """Write an event with the next number; None if another evaluator took it first."""
        number = self.of(event.alert).sequence + 1
        event = replace(event, sequence=number, evaluator=self.evaluator)
        write(self.lake, ALERTS, _rows(event), mode="insert", keys=_KEY)
        return event if event in self.refresh() else None

    def waiting(self, alert: str, sequence: int) -> Event | None:
        """An event that some channel does not have yet, as the table has it."""
        return self._pending.get((alert, sequence))

    def note(self, event: Event) -> None:
        """Complete a row: who has it by now."""
        write(self.lake, ALERTS, _rows(event), mode="merge", keys=_KEY)
        self.refresh()

    def _take(self, event: Event) -> None:
        standing = self.of(event.alert)
        standing.sequence = event.sequence
        if event.change in ("muted", "unmuted"):
            standing.muted_until = event.muted_until
        is_told = event.delivery != "muted" and event.change in ("opened", "repeated")
        after(
            standing.incidents,
            event.change,
            event.condition,
            event.happened_at,
            event.message,
            is_told,
        )
        if event.delivery == "pending":
            self._pending[event.alert, event.sequence] = event


def _event(row: Mapping[str, Any]) -> Event:
    delivered_to = tuple(json.loads(row["delivered_to"] or "[]"))
    return Event(**cast(Any, {**row, "delivered_to": delivered_to}))


def _rows(event: Event) -> pa.Table:
    row = {**asdict(event), "delivered_to": json.dumps(event.delivered_to)}
    return pa.Table.from_pylist([row], _SCHEMA)
