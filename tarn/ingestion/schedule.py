"""The process that loads systems when they are due.

APScheduler waits and runs; the times are those of `timetable`, as it reads cron in its own way.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event, Thread

from apscheduler.events import (  # type: ignore[import-untyped]
    EVENT_JOB_MAX_INSTANCES,
    JobSubmissionEvent,
)
from apscheduler.schedulers.background import (  # type: ignore[import-untyped]
    BackgroundScheduler,
)
from apscheduler.triggers.base import BaseTrigger  # type: ignore[import-untyped]

from tarn.ingestion.timetable import Timetable
from tarn.storage.lake import Lake
from tarn.storage.loads import last_tries

SIDE_BY_SIDE = 4


@dataclass(frozen=True)
class Outcome:
    """How a load went, for one line."""

    told: str
    moved: bool
    """Rows came in, so that there is something to build."""


@dataclass(frozen=True)
class Work:
    """What is done when a system is due, and how events are told: a line each."""

    load: Callable[[str], Outcome]
    build: Callable[[], str] | None
    """Builds what models make of the rows, and says how that went."""
    tell: Callable[[str], None]


def due(lake: Lake, systems: Mapping[str, Timetable], at: datetime) -> list[str]:
    """The systems that have not been tried since they were due; each once, however often that
    was."""
    tried = last_tries(lake)
    return [
        name
        for name, timetable in systems.items()
        if name not in tried or tried[name] < timetable.before(at)
    ]


def run_once(names: Collection[str], work: Work) -> None:
    """Load these systems side by side, then build."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        outcomes = list(pool.map(lambda name: _load(name, work), names))
    if any(outcomes):
        _build(work)


def run(systems: Mapping[str, Timetable], missed: Collection[str], work: Work, stop: Event) -> None:
    """Load what was missed, then each system when it is due, until `stop` is set."""
    builder = _Builder(work)
    scheduler = BackgroundScheduler(
        timezone=UTC,
        executors={"default": {"type": "threadpool", "max_workers": SIDE_BY_SIDE}},
        # A machine that slept has missed its times; they count once, however late.
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )

    def load(name: str) -> None:
        if _load(name, work):
            builder.wanted.set()

    def skipped(event: JobSubmissionEvent) -> None:
        work.tell(f"{event.job_id}: still being loaded, so this time is left out")

    scheduler.add_listener(skipped, EVENT_JOB_MAX_INSTANCES)
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    for name, timetable in systems.items():
        now = {"next_run_time": datetime.now(UTC)} if name in missed else {}
        scheduler.add_job(load, _Cron(timetable), [name], id=name, **now)
    builder.start()
    scheduler.start()
    stop.wait()
    scheduler.shutdown(wait=False)
    builder.end()


class _Cron(BaseTrigger):  # type: ignore[misc]
    """Tells APScheduler the times that croniter finds."""

    def __init__(self, timetable: Timetable) -> None:
        self.timetable = timetable

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        moment = max(previous, now) if previous else now
        after = self.timetable.after(moment.astimezone(UTC).replace(tzinfo=None))
        return after.replace(tzinfo=UTC)


class _Builder(Thread):
    """Builds after loads, one build at a time; loads that end meanwhile share the next."""

    def __init__(self, work: Work) -> None:
        super().__init__(daemon=True)
        self.work, self.wanted, self._is_over = work, Event(), False

    def run(self) -> None:
        while self.wanted.wait() and not self._is_over:
            self.wanted.clear()
            _build(self.work)

    def end(self) -> None:
        self._is_over = True
        self.wanted.set()


def _load(name: str, work: Work) -> bool:
    """Whether rows came in. What goes wrong is told and is no reason to stop."""
    try:
        outcome = work.load(name)
    except Exception as failure:
        work.tell(f"{name}: failed: {failure}")
        return False
    work.tell(f"{name}: {outcome.told}")
    return outcome.moved


def _build(work: Work) -> None:
    if work.build is None:
        return
    work.tell("build: started")
    try:
        work.tell(f"build: {work.build()}")
    except Exception as failure:
        work.tell(f"build: failed: {failure}")
