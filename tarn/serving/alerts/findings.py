"""What an evaluation of an alert finds, condition by condition, in the words that are sent."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias
from zoneinfo import ZoneInfo

import duckdb

from tarn.errors import TarnError
from tarn.serving.alerts.declaration import Alert
from tarn.serving.alerts.heartbeat import Pulse, pulse
from tarn.serving.alerts.hours import open_since
from tarn.serving.alerts.measuring import Measured, Window, measure, window
from tarn.serving.formats import show
from tarn.storage.lake import Lake
from tarn.storage.loads import span
from tarn.strict_yaml import span as length

Condition = Literal["value", "no_data", "late_data", "failure"]
CONDITIONS: tuple[Condition, ...] = ("value", "no_data", "late_data", "failure")
Connect: TypeAlias = Callable[[], duckdb.DuckDBPyConnection]


@dataclass(frozen=True)
class Declared:
    """An alert of the project, ready to be evaluated."""

    name: str
    alert: Alert
    sql: str
    """Compiled, where it is a metric's."""
    where: str
    """Of the exposure, for messages."""


@dataclass(frozen=True)
class Finding:
    """What is known of one condition."""

    condition: Condition
    is_bad: bool | None
    """None: nothing can be concluded, so it stays what it was."""
    text: str
    measured: Measured | None = None


def find(declared: Declared, lake: Lake, connect: Connect, at: datetime) -> list[Finding]:
    """Evaluate an alert at a moment. Raises what kept it from being evaluated."""
    alert = declared.alert
    since = open_since(alert.business_hours, at) if alert.business_hours else datetime.min
    if since is None:
        return [_held("value", "outside business hours")]
    found: list[Finding] = [Finding("failure", False, "it can be evaluated")]
    if alert.heartbeat is not None:
        beat = pulse(lake, alert.heartbeat, at, since)
        found += _data(alert, beat)
        if beat.no_data or beat.late_data:
            return [*found, _held("value", "the data is missing or late")]
    if window(alert, at)[0] < since:
        return [*found, _held("value", "the window began before business hours")]
    return [*found, _value(alert, measure(alert, declared.sql, connect(), at))]


def failed(declared: Declared, error: Exception) -> Finding:
    """That an alert cannot be evaluated."""
    told = " ".join((error.what if isinstance(error, TarnError) else str(error)).split())
    return Finding(
        "failure", True, f"{declared.alert.title}: cannot be evaluated ({declared.where}): {told}"
    )


def _held(condition: Condition, text: str) -> Finding:
    return Finding(condition, None, text)


def _data(alert: Alert, beat: Pulse) -> list[Finding]:
    """While nothing comes, nobody can tell whether it would be late."""
    none, late = beat.no_data, beat.late_data
    no_data = f"no data: {none}" if none else "data comes again"
    late_data = f"late data: {late}" if late else "the data is of now again"
    return [
        Finding("no_data", bool(none), f"{alert.title}: {no_data}"),
        Finding("late_data", None if none else bool(late), f"{alert.title}: {late_data}"),
    ]


def _value(alert: Alert, measured: Measured) -> Finding:
    text = alert.message.format(
        title=alert.title,
        value=show(measured.value, alert.format),
        usual=show(measured.usual, alert.format),
        threshold=_bound(alert, measured),
        window=_told(alert, measured.window),
    )
    return Finding("value", measured.is_out, measured.lacks or text, measured)


def _bound(alert: Alert, measured: Measured) -> str:
    bound = measured.threshold
    words = "at most" if bound is not None and bound == measured.high else "at least"
    return f"{words} {show(bound, alert.format)}"


def _told(alert: Alert, bounds: Window) -> str:
    """A window as its readers' clocks have it: the 15 min to 14:05 UTC."""
    zone = alert.business_hours.timezone if alert.business_hours else "UTC"
    end = bounds[1].replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
    return f"the {span(length(alert.window) // timedelta(seconds=1))} to {end:%a %H:%M %Z}"
