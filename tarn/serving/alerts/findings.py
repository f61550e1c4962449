"""What an evaluation of an alert finds, condition by condition, in the words that are sent."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
from tarn.strict_yaml import duration

log = logging.getLogger(__name__)

Condition = Literal["value", "no_data", "late_data", "failure"]
CONDITIONS: tuple[Condition, ...] = ("value", "no_data", "late_data", "failure")
Connect: TypeAlias = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
_LONGEST = 500
"""Characters of an error that are told."""


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
    """Evaluate an alert at a moment. What goes wrong is a finding too."""
    found: list[Finding] = []
    try:
        found.extend(_findings(declared, lake, connect, at))
    except Exception as error:
        log.debug("%s", declared.name, exc_info=True)
        found.append(_failed(declared, error))
    return found


def _findings(declared: Declared, lake: Lake, connect: Connect, at: datetime) -> Iterator[Finding]:
    alert = declared.alert
    since = open_since(alert.business_hours, at) if alert.business_hours else datetime.min
    if since is None:
        yield _held("outside business hours")
        return
    if alert.heartbeat is not None:
        beat = pulse(lake, alert.heartbeat, at, since)
        yield from _data(alert, beat)
        if beat.no_data or beat.late_data:
            yield _held("the data is missing or late")
            return
    if window(alert, at)[0] < since:
        yield _held("the window began before business hours")
        return
    with connect() as connection:
        yield _value(alert, measure(alert, declared.sql, connection, at))
    yield Finding("failure", False, f"{alert.title}: can be evaluated again")


def _failed(declared: Declared, error: Exception) -> Finding:
    told = " ".join((error.what if isinstance(error, TarnError) else str(error)).split())
    what = f"{declared.alert.title}: cannot be evaluated ({declared.where}): {told[:_LONGEST]}"
    return Finding("failure", True, what)


def _held(text: str) -> Finding:
    return Finding("value", None, text)


def _data(alert: Alert, beat: Pulse) -> list[Finding]:
    """While nothing comes, nobody can tell whether it would be late."""
    none, late = beat.no_data, beat.late_data
    no_data = f"no data: {none}" if none else "data comes again"
    late_data = f"late data: {late}" if late else "the data is up to date again"
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
    return f"the {span(duration(alert.window) // timedelta(seconds=1))} to {end:%a %H:%M %Z}"
