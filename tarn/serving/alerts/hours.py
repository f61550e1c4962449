"""Business hours in their own time zone, whatever the clocks do there."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from tarn.serving.alerts.declaration import DAYS, BusinessHours

_DAY = timedelta(days=1)
_FURTHEST = 8
"""Days; hours that never end need not be followed further back."""


def open_since(hours: BusinessHours, at: datetime) -> datetime | None:
    """When the hours began that `at` lies in; None outside. Instants are UTC without zone."""
    begun: datetime | None = None
    for begins, ends in _spans(hours, at):
        if begun is None and begins <= at < ends:
            begun = begins
        elif begun is not None and ends >= begun:
            begun = min(begins, begun)
    return begun


def same_time_before(at: datetime, weeks: int, zone: str) -> datetime:
    """The same weekday and time on the clocks of a zone, so many weeks before."""
    local = at.replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
    # Arithmetic on a zoned datetime is on its wall clock.
    return _utc(local - timedelta(weeks=weeks))


def _spans(hours: BusinessHours, at: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Opening and closing of the days up to `at`, the latest first."""
    zone = ZoneInfo(hours.timezone)
    today = at.replace(tzinfo=UTC).astimezone(zone).date()
    for back in range(_FURTHEST):
        day = today - back * _DAY
        if DAYS[day.weekday()] in hours.days:
            last = day if hours.closes > hours.opens else day + _DAY
            yield _at(day, hours.opens, zone), _at(last, hours.closes, zone)


def _at(day: date, clock: str, zone: ZoneInfo) -> datetime:
    if clock == "24:00":
        day, clock = day + _DAY, "00:00"
    return _utc(datetime.combine(day, time.fromisoformat(clock), zone))


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)
