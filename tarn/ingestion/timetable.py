"""When a system is due.

Read as cron reads it: Sunday is 0 or 7, and of a day of the month and a day of the week either
will do. In its time zone: what falls into an hour that is left out comes at the end of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from croniter import croniter  # type: ignore[import-untyped]

from tarn.ingestion.declarations import Declared


@dataclass(frozen=True)
class Timetable:
    """The schedule of one system. Times are UTC without zone, as in the lake."""

    cron: str
    zone: str

    @classmethod
    def of(cls, declared: Declared) -> "Timetable | None":
        system = declared.system
        return cls(system.schedule, system.timezone) if system.schedule else None

    def after(self, moment: datetime) -> datetime:
        """The first time it is due after a moment."""
        return self._utc(self._from(moment).get_next(datetime))

    def before(self, moment: datetime) -> datetime:
        """The last time it was due up to a moment."""
        due = self._utc(self._from(moment).get_prev(datetime))
        following = self.after(due)
        return following if following <= moment else due

    def _from(self, moment: datetime) -> croniter:
        return croniter(self.cron, moment.replace(tzinfo=UTC).astimezone(ZoneInfo(self.zone)))

    def _utc(self, due: datetime) -> datetime:
        return due.astimezone(UTC).replace(tzinfo=None)


def timetables(systems: Sequence[Declared]) -> dict[str, Timetable]:
    """Of the systems that have one."""
    found = {each.name: Timetable.of(each) for each in systems}
    return {name: timetable for name, timetable in found.items() if timetable}
