"""When systems are due, the process that loads them then, and its text for other schedulers."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread

import pytest
import yaml
from croniter import croniter  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion import schedule
from tarn.ingestion.declarations import declared
from tarn.ingestion.exports import crontab_text, github_text
from tarn.ingestion.landed import Desk
from tarn.ingestion.ledger import Counts, TableLoad, record
from tarn.ingestion.schedule import Outcome, Work, due
from tarn.ingestion.timetable import Timetable, timetables
from tarn.ingestion.workspace import alone, is_taken
from tarn.storage.clock import now
from tarn.storage.releases import current
from tests.engine.conftest import BIN
from tests.engine.ingesting import Project, project
from tests.engine.library import Library

__all__ = ["project"]

SALES = "create table sales (id integer primary key); insert into sales values (1), (2);"
TABLE = "  sales: {write: replace}"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def declare(project: Project, system: str, cron: str, zone: str = "UTC") -> None:
    project.declare(system, "sql_database", "sqlite:///shop.db", TABLE)
    path = project.path / f"ingestion/{system}.yml"
    path.write_text(f'{path.read_text()}schedule: "{cron}"\ntimezone: {zone}\n')


@pytest.mark.parametrize(
    ("cron", "zone", "moment", "before", "after"),
    [
        ("0 2 * * *", "UTC", "2026-11-22 02:00", "2026-11-22 02:00", "2026-11-23 02:00"),
        ("0 2 * * *", "UTC", "2026-11-22 01:59", "2026-11-21 02:00", "2026-11-22 02:00"),
        # 2026-11-22 is a Sunday, which is 0 and 7; to APScheduler 0 is Monday.
        ("0 2 * * 0", "UTC", "2026-11-21 12:00", "2026-11-15 02:00", "2026-11-22 02:00"),
        ("0 2 * * 7", "UTC", "2026-11-21 12:00", "2026-11-15 02:00", "2026-11-22 02:00"),
        ("0 2 * * sun", "UTC", "2026-11-21 12:00", "2026-11-15 02:00", "2026-11-22 02:00"),
        ("0 2 * * 1", "UTC", "2026-11-21 12:00", "2026-11-16 02:00", "2026-11-23 02:00"),
        ("0 2 * * 1-5", "UTC", "2026-11-21 12:00", "2026-11-20 02:00", "2026-11-23 02:00"),
        # The first of a month or a Monday: either will do.
        ("0 2 1 * 1", "UTC", "2026-11-30 12:00", "2026-11-30 02:00", "2026-12-01 02:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-01-10 12:00", "2026-01-10 01:30", "2026-01-11 01:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-07-10 12:00", "2026-07-10 00:30", "2026-07-11 00:30"),
        # The hour that is left out in spring.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-28 01:30", "2026-03-29 01:00"),
    ],
)
def test_a_timetable_reads_cron_as_cron_does(
    cron: str, zone: str, moment: str, before: str, after: str
) -> None:
    timetable = Timetable(cron, zone)
    assert timetable.before(at(moment)) == at(before)
    assert timetable.after(at(moment)) == at(after)


def test_apscheduler_fires_at_the_times_of_the_timetable() -> None:
    trigger = schedule._Cron(Timetable("0 2 * * 0", "UTC"))
    fired = trigger.get_next_fire_time(None, at("2026-11-16 00:00+00:00"))
    assert fired == at("2026-11-22 02:00+00:00")
    assert trigger.get_next_fire_time(fired, fired) == at("2026-11-29 02:00+00:00")


@pytest.mark.parametrize(
    ("cron", "zone", "told"),
    [
        ("* * * * * *", "UTC", "is not a cron expression"),
        ("0 0 * * 8", "UTC", "is not a cron expression"),
        ("R R * * *", "UTC", "is not a cron expression"),
        ("0 0 31 2 *", "UTC", "never comes"),
        ("0 0 * * *", "Mars/Olympus", "is no time zone"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(
    project: Project, cron: str, zone: str, told: str
) -> None:
    declare(project, "shop", cron, zone)
    with pytest.raises(TarnError, match=told):
        declared(project.path / "ingestion")


def test_what_was_missed_is_due_once(project: Project) -> None:
    project.sql(SALES)
    declare(project, "shop", "0 2 * * *")
    declare(project, "other", "0 3 * * *")
    project.declare("never", "sql_database", "sqlite:///shop.db", TABLE)
    systems = timetables(declared(project.path / "ingestion"))
    assert list(systems) == ["other", "shop"]
    assert due(project.lake, systems, now()) == ["other", "shop"]
    project.load("shop")
    assert due(project.lake, systems, now()) == ["other"]
    assert due(project.lake, systems, now() + timedelta(days=9)) == ["other", "shop"]
    # A load that failed counts as well: the next time is the next.
    project.sql("drop table sales;")
    assert project.load("other")["sales"].status == "failed"
    assert due(project.lake, systems, now()) == []


def test_the_first_check_since_a_time_is_recorded(project: Project) -> None:
    desk = Desk(project.lake, project.path)
    for minutes, due_minutes, recorded in ((25, None, 1), (24, 23, 2), (12, 30, 2), (0, 5, 3)):
        began = now() - timedelta(minutes=minutes)
        check = TableLoad("shop", "sales", "unchanged", Counts(), began, began)
        due_at = now() - timedelta(minutes=due_minutes) if due_minutes else None
        record(desk, "1", [check], due_at)
        assert len(project.rows("tarn.loads")) == recorded
    desk.close()


class Heard:
    """Work that only notes what it was asked for."""

    def __init__(self, failing: str = "", moved: bool = True) -> None:
        self.loaded: list[str] = []
        self.lines: list[str] = []
        self.built, self.failing, self.moved = 0, failing, moved
        self.reached = Event()

    def load(self, system: str) -> Outcome:
        self.loaded.append(system)
        if system == self.failing:
            raise RuntimeError("the line was cut")
        return Outcome("1 rows came in", self.moved)

    def build(self) -> str:
        self.built += 1
        self.reached.set()
        return "green"

    @property
    def work(self) -> Work:
        return Work(self.load, self.build, self.lines.append)


EACH_NIGHT = {name: Timetable("0 2 * * *", "UTC") for name in ("bad", "shop")}


def test_a_failure_stops_neither_the_others_nor_the_build() -> None:
    heard = Heard("bad")
    schedule.run_once(["bad", "shop"], heard.work)
    assert sorted(heard.loaded) == ["bad", "shop"]
    assert sorted(heard.lines) == [
        "bad: failed: the line was cut", "build: green", "build: started", "shop: 1 rows came in",
    ]  # fmt: skip
    quiet = Heard(moved=False)
    schedule.run_once(["shop"], quiet.work)
    assert quiet.built == 0


def test_missed_systems_are_loaded_at_once_and_built() -> None:
    heard, stop = Heard("bad"), Event()
    thread = Thread(target=schedule.run, args=(EACH_NIGHT, ["bad", "shop"], heard.work, stop))
    thread.start()
    assert heard.reached.wait(30)
    stop.set()
    thread.join(30)
    assert sorted(heard.loaded) == ["bad", "shop"]


def test_a_system_that_is_being_loaded_is_taken(tmp_path: Path) -> None:
    assert not is_taken(tmp_path, "shop")
    with alone(tmp_path, "shop"):
        assert is_taken(tmp_path, "shop")
        assert not is_taken(tmp_path, "other")


def environment() -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TARN_")}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "NO_COLOR": "1"}


def tarn(project: Project, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BIN / "tarn", *arguments],
        cwd=project.path,
        env=environment(),
        capture_output=True,
        text=True,
    )


def test_once_loads_what_is_due_and_ends(project: Project) -> None:
    project.sql(SALES)
    declare(project, "shop", "0 2 * * *")
    declare(project, "bad", "0 2 * * *")
    (project.path / "ingestion/bad.yml").write_text(
        (project.path / "ingestion/bad.yml").read_text().replace("shop.db", "gone.db")
    )
    first = tarn(project, "schedule", "--once", "--no-build")
    assert first.returncode == 0, first.stderr
    lines = [line[20:] for line in first.stdout.splitlines()]
    assert "shop: 2 rows came in" in lines
    assert any(line.startswith("bad: failed: sales: ") for line in lines)
    assert len(project.rows("raw_shop.sales")) == 2
    assert tarn(project, "schedule", "--once", "--no-build").stdout == ""
    listed = tarn(project, "schedule", "list").stdout
    assert re.search(r"shop +0 2 \* \* \* +UTC +\d{4}-\d\d-\d\d \d\d:\d\d +\d{4}", listed)


def test_what_came_in_is_built_and_released(tmp_path: Path) -> None:
    library = Library.founded(tmp_path / "library")
    library.day(1)
    desk = library.folder / "ingestion/desk.yml"
    desk.write_text(f'schedule: "0 2 * * *"\n{desk.read_text()}')
    lines = [line[20:] for line in library.tarn("schedule", "--once").splitlines()]
    assert lines[0] == "desk: started"
    assert lines[1].endswith("rows came in")
    assert lines[2] == "build: started"
    assert lines[3].startswith("build: green")
    release = current(library.lake)
    assert release is not None
    assert release.number == 1
    assert library.tarn("schedule", "--once") == ""
    (library.folder / "models/marts/broken.sql").write_text("select nonsense from nowhere")
    library.day(2)
    # As if the night had passed.
    shutil.rmtree(library.folder / "lake/tarn")
    lines = library.tarn("schedule", "--once").splitlines()
    assert any("build: red, readers still see the release before" in line for line in lines)
    assert current(library.lake) == release


@contextmanager
def running(project: Project) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [BIN / "tarn", "schedule", "--no-build"],
        cwd=project.path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_scheduler_ends_when_it_is_told_to(project: Project, ending: int) -> None:
    project.sql(SALES)
    declare(project, "shop", "0 2 * * *")
    with running(project) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "rows came in" in line:
                break
        process.send_signal(ending)
        assert process.stdout.read().endswith("stopped\n")
        assert process.wait(30) == 0
    assert len(project.rows("raw_shop.sales")) == 2


def test_a_killed_scheduler_catches_up_when_it_is_back(project: Project) -> None:
    project.sql("create table sales (id integer); insert into sales values (1);")
    declare(project, "shop", "0 2 * * *")
    for _ in range(2):
        with running(project) as process:
            assert process.stdout is not None
            assert any("shop: " in line for line in process.stdout)
            process.send_signal(signal.SIGKILL)
            process.wait()
    (project.path / ".tarn").mkdir(exist_ok=True)
    with alone(project.path / ".tarn", "shop"):
        # What it had begun is at its end.
        pass
    tarn(project, "schedule", "--once", "--no-build")
    assert len(project.rows("raw_shop.sales")) == 1


def test_crontab_lines_can_be_read_by_cron(project: Project) -> None:
    declare(project, "shop", "0 2 * * 0")
    declare(project, "more", "0 2 * * 0")
    declare(project, "far", "30 3 * * *", "America/New_York")
    systems = timetables(declared(project.path / "ingestion"))
    text = crontab_text(systems, Path("/my 100% data"), "/opt/tarn")
    zone, found = "", {}
    for line in text.splitlines():
        if line.startswith("CRON_TZ="):
            zone = line.partition("=")[2]
        elif not line.startswith("#"):
            *fields, command = line.split(" ", 5)
            assert croniter.is_valid(" ".join(fields))
            assert command == r"cd '/my 100\% data' && /opt/tarn schedule --once"
            found[" ".join(fields)] = zone
    assert found == {"0 2 * * 0": "UTC", "30 3 * * *": "America/New_York"}
    assert "# more, shop" in text


def test_a_workflow_for_github_wakes_often_enough(project: Project) -> None:
    declare(project, "shop", "0 2 * * 7")
    declare(project, "far", "30 3 * * *", "America/New_York")
    declare(project, "half", "0 3 * * *", "Asia/Kolkata")
    path = project.path / "ingestion/far.yml"
    path.write_text(path.read_text().replace("sqlite:///shop.db", "${FAR_URL}"))
    text = github_text(declared(project.path / "ingestion"))
    workflow = yaml.safe_load(text)
    crons = [each["cron"] for each in workflow[True]["schedule"]]
    assert crons == ["*/5 * * * *", "0 2 * * 0", "30 * * * *"]
    assert workflow["jobs"]["load"]["steps"][-1]["run"] == "tarn schedule --once"
    environment = workflow["jobs"]["load"]["steps"][-1]["env"]
    assert environment["FAR_URL"] == "${{ secrets.FAR_URL }}"
    assert environment["TARN_LAKE"] == "${{ vars.TARN_LAKE }}"
    assert "\non:\n" in text


def test_the_events_of_a_load_are_read_from_its_json(project: Project) -> None:
    project.sql(SALES)
    project.declare("shop", "sql_database", "sqlite:///shop.db", TABLE)
    done = tarn(project, "ingest", "--json")
    (told,) = map(json.loads, done.stdout.splitlines())
    assert (told["table"], told["accepted"], told["error"]) == ("sales", 2, None)
