"""What an alert measures: the value of a window, and what is usual for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from math import isfinite
from statistics import median
from typing import TypeAlias

import duckdb

from tarn.errors import TarnError
from tarn.serving.alerts.declaration import END, START, Alert, Deviation
from tarn.serving.alerts.hours import same_time_before
from tarn.strict_yaml import duration

Window: TypeAlias = tuple[datetime, datetime]
"""Beginning, and end that is not in it; UTC without zone."""
GRAINS: Mapping[str, timedelta] = {
    "day": timedelta(days=1),
    "hour": timedelta(hours=1),
    "minute": timedelta(minutes=1),
}
_SIGMA = 1.4826
"""Median absolute deviations of a normal distribution in a standard deviation."""
_LEAST_SPREAD = 0.05
"""Of the median: where the past was all but constant, a small change is no deviation."""
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True)
class Measured:
    """What was found for one window."""

    window: Window
    value: float | None
    """None if the window has none: nothing can be concluded."""
    usual: float | None = None
    """Median of the same window in the weeks before."""
    low: float | None = None
    high: float | None = None
    """The bounds, from the declaration or the pattern."""
    lacks: str | None = None
    """Why nothing can be concluded, in words."""

    @property
    def is_out(self) -> bool | None:
        """Whether the value is out of bounds; None if nobody can tell."""
        if self.value is None:
            return None
        is_low = self.low is not None and self.value < self.low
        is_high = self.high is not None and self.value > self.high
        if is_low or is_high:
            return True
        return None if self.lacks else False

    @property
    def threshold(self) -> float | None:
        """The bound that was crossed, else the one there is."""
        if self.high is not None and (self.low is None or _above(self.value, self.high)):
            return self.high
        return self.low


def _above(value: float | None, bound: float) -> bool:
    return value is not None and value > bound


def grain(alert: Alert) -> str:
    """The largest grain whose whole number the window of a metric is."""
    return next(name for name, size in GRAINS.items() if not duration(alert.window) % size)


def window(alert: Alert, at: datetime) -> Window:
    """The window that ends at a moment; of a metric, at the last whole grain before it."""
    end = at - (at - _EPOCH) % GRAINS[grain(alert)] if alert.metric else at
    return end - duration(alert.window), end


def measure(
    alert: Alert, sql: str, connection: duckdb.DuckDBPyConnection, at: datetime
) -> Measured:
    """The value of the window that ends at a moment, with its bounds."""
    now = window(alert, at)
    value = _value(connection, sql, now)
    low, high, usual, lacks = alert.floor, alert.ceiling, None, None
    if value is None:
        lacks = "the window has no value"
    elif alert.deviation is not None:
        past = [_value(connection, sql, each) for each in _weeks(alert, alert.deviation, now)]
        usual, bound, lacks = pattern(alert.deviation, past)
        if bound is not None and alert.deviation.side == "below":
            low = bound if low is None else max(low, bound)
        elif bound is not None:
            high = bound if high is None else min(high, bound)
    return Measured(now, value, usual, low, high, lacks)


def pattern(
    deviation: Deviation, past: Sequence[float | None]
) -> tuple[float | None, float | None, str | None]:
    """What is usual, the bound that follows, and what is lacking. The latest week comes first."""
    weeks = list(past)
    while weeks and not weeks[-1]:
        weeks.pop()
    known = [value for value in weeks if value is not None]
    if len(known) < deviation.at_least:
        return None, None, f"history of {len(known)} weeks, and {deviation.at_least} are needed"
    usual = median(known)
    spread = max(_SIGMA * median(abs(value - usual) for value in known), _LEAST_SPREAD * abs(usual))
    sign = -1 if deviation.side == "below" else 1
    return usual, usual + sign * deviation.by * spread, None


def _weeks(alert: Alert, deviation: Deviation, now: Window) -> Sequence[Window]:
    zone = alert.business_hours.timezone if alert.business_hours else "UTC"
    ends = [same_time_before(now[1], back, zone) for back in range(1, deviation.weeks + 1)]
    return [(end - duration(alert.window), end) for end in ends]


def _value(connection: duckdb.DuckDBPyConnection, sql: str, bounds: Window) -> float | None:
    """The value that a query of one row and one column gives."""
    cursor = connection.execute(sql, dict(zip((START, END), bounds, strict=True)))
    rows = cursor.fetchmany(2)
    if len(rows) != 1 or len(rows[0]) != 1:
        raise TarnError("the query does not give one row with one value")
    [[value]] = rows
    if value is None:
        return None
    if not isinstance(value, int | float | Decimal):
        raise TarnError(f"the query gives a {type(value).__name__}, not a number")
    return float(value) if isfinite(value) else None
