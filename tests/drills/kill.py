"""kill -9 at ingest, build, publication and upkeep: in the end all is as if nothing had been."""

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from tarn.storage import catalog, releases
from tarn.storage.duck import select_from
from tarn.storage.lake import Lake
from tarn.storage.releases import Release
from tarn.storage.writer import write
from tests.drills.reading import contents, shown, wrong
from tests.drills.telling import Drill
from tests.drills.watching import Kill, Moment, Ran, age, files, run
from tests.engine.library import Library

_DATA = r"\w+/\w+/part-[^/]*\.parquet"
_COMMIT = r"\w+/\w+/_delta_log/\d+\.json"
_RELEASE = Moment("a release is published", r"_tarn/releases/\d+\.json")
_DRAFT = Moment("the catalog is being written", r"catalog\.duckdb\.\d+")
_SWAPPED = Moment("the catalog is swapped in", r"catalog\.duckdb\.\d+", gone=True)
MOMENTS: Mapping[str, tuple[Moment, ...]] = {
    "ingest": (
        Moment("data is written", "raw_" + _DATA),
        Moment("a load is committed", "raw_" + _COMMIT),
        Moment("the ledger is written", "tarn/loads/.*"),
    ),
    "build": (
        Moment("data is written", _DATA),
        Moment("a model is committed", _COMMIT),
        Moment("a view is kept", r"_tarn/views/.*"),
        _RELEASE,
        _DRAFT,
        _SWAPPED,
    ),
    "maintain": (
        Moment("a file is rewritten", r"_tarn/upkeep/.*\.parquet"),
        Moment("a rewritten file is moved in", _DATA),
        Moment("a rewrite is committed", _COMMIT),
        Moment("a release expires", r"_tarn/expired/.*"),
        Moment("a checkpoint is made", r".*\.checkpoint\.parquet"),
        Moment("vacuum deletes", _DATA, gone=True),
        Moment("the log is trimmed", _COMMIT, gone=True),
        _RELEASE,
        _DRAFT,
        _SWAPPED,
    ),
}
_POLICY = """\
defaults: {compact_from: 3}
releases: {keep: 0 days, at_least: 3}
vacuum_after: 1 day
"""
_PAST = "raw_past.events"
_PAST_FILES = {
    "models/staging/_past.yml": (
        "sources: [{name: past, schema: raw_past, tables: [{name: events}]}]"
    ),
    "models/marts/fct_past.sql": "select count(*) as events from {{ source('past', 'events') }}",
}
"""A source that is written in many small commits, so that there are logs to trim."""
_COMMITS_A_DAY = 12
_KILLS_A_STEP = 8
"""At most."""
_ANY_TIME = 0.3
"""Share of kills at no particular moment."""
_SHARE = (0.1, 0.9)
"""Of its usual time, before a command is killed at no particular moment."""
_LAST_DAY = 28
_LONGEST_AFTER = 0.03
"""Seconds between what a kill waits for and the kill."""


def drill(seed: int, rounds: int, folder: Path) -> Drill:
    """So many kills, day by day; beside it the same days undisturbed."""
    told = Drill("kill", seed, rounds)
    killing = _Killing(told, random.Random(seed), folder)
    with _Readers(killing.killed.lake.root) as readers:
        for day in range(1, _LAST_DAY + 1):
            killing.day(day)
            if told.did["kills"] >= rounds:
                break
        said = readers.communicate()[0]
    killing.clean()
    _tell_readers(told, said)
    return told


class _Killing:
    """The two libraries."""

    def __init__(self, told: Drill, chance: random.Random, folder: Path) -> None:
        self.told, self.chance = told, chance
        self.calm = Library.founded(folder / "calm", told.seed)
        self.killed = Library.founded(folder / "killed", told.seed)
        self.known: list[dict[str, Any]] = []
        """What the undisturbed release came to, each day."""
        for library in (self.calm, self.killed):
            (library.folder / "storage.yml").write_text(_POLICY)
            for file, text in _PAST_FILES.items():
                (library.folder / file).write_text(text)
            (library.folder / "lake").mkdir()

    def day(self, day: int) -> None:
        """Load, build and maintain: first undisturbed, then not."""
        for library in (self.calm, self.killed):
            library.day(day)
            for number in range(_COMMITS_A_DAY * day, _COMMITS_A_DAY * (day + 1)):
                write(library.lake, _PAST, pa.table({"number": [number]}), mode="append")
        for step in MOMENTS:
            if step == "maintain":
                age(Path(self.calm.lake.root), 2)
                age(Path(self.killed.lake.root), 2)
            usual = self._finish(self.calm, step)
            for kill in self._kills(step, usual):
                if not self._kill(step, kill):
                    break
            self._finish(self.killed, step)
            self._check(step)
        self.told.did["days"] += 1
        done = self.told.did["kills"]
        print(f"  day {day}: {done} kills so far, {len(self.told.faults)} faults", flush=True)

    def _kills(self, step: str, usual: Ran) -> list[Kill]:
        return [self._planned(step, usual) for _ in range(self.chance.randint(1, _KILLS_A_STEP))]

    def _planned(self, step: str, usual: Ran) -> Kill:
        happens = [moment for moment in MOMENTS[step] if usual.happened[moment]]
        if not happens or self.chance.random() < _ANY_TIME:
            return Kill(None, after=self.chance.uniform(*_SHARE) * usual.seconds)
        moment = self.chance.choice(happens)
        nth = self.chance.randint(1, usual.happened[moment])
        after = self.chance.choice([0, self.chance.uniform(0, _LONGEST_AFTER)])
        return Kill(moment, nth, after, self.chance.uniform(*_SHARE) * usual.seconds)

    def _kill(self, step: str, kill: Kill) -> bool:
        """Whether it was killed, not done before."""
        if self.told.did["kills"] >= self.told.rounds:
            return False
        ran = run(self.killed, ["tarn", step], MOMENTS[step], kill)
        if not ran.killed:
            self.told.did["commands done before the kill"] += 1
            ended = not ran.returncode
            self.told.check("a command that is not killed ends well", ended, ran.output)
            return False
        self.told.did["kills"] += 1
        self.told.did[f"kills of {step}, {ran.at}"] += 1
        return True

    def _finish(self, library: Library, step: str) -> Ran:
        ran = run(library, ["tarn", step], MOMENTS[step])
        self.told.check(
            "a command ends well after kills", ran.returncode == 0, f"{step}: {ran.output[-3000:]}"
        )
        return ran

    def _check(self, step: str) -> None:
        lake = self.killed.lake
        if step == "ingest":
            return
        release, calm = releases.current(lake), releases.current(self.calm.lake)
        if not self.told.check("there is a release", bool(release and calm)):
            return
        assert release is not None
        assert calm is not None
        expected = contents(self.calm.lake, calm)
        if step == "build":
            self.known.append(expected)
        found = contents(lake, release)
        differ = [n for n in {*expected, *found} if expected.get(n) != found.get(n)]
        self.told.check("the release has the undisturbed run's rows", not differ, f"{differ}")
        with shown(lake, release) as connection:
            faults = unlike_upstream(connection, self.killed)
        hours = self.killed.lake.table("raw_desk.opening_hours")
        assert hours is not None
        with duckdb.connect() as connection, self.killed.upstream() as desk:
            chosen = "select weekday, opens, closes from"
            ours = connection.execute(f"{chosen} ({select_from(hours)})").fetchall()
            if sorted(ours) != sorted(desk.execute(f"{chosen} opening_hours").fetchall()):
                faults.append("opening hours differ")
        self.told.check("the release has the upstream's rows", not faults, "; ".join(faults))
        self.told.check(
            "the catalog shows the current release",
            _catalog_number(lake) == release.number,
            f"it shows {_catalog_number(lake)}, current is {release.number}, after {step}",
        )
        for each in releases.releases(lake):
            self._check_kept(lake, each)

    def _check_kept(self, lake: Lake, release: Release) -> None:
        try:
            with shown(lake, release) as connection:
                rows = {name: pin.rows for name, pin in release.tables.items()}
                faults = wrong(connection, rows)
            if contents(lake, release) not in self.known:
                faults.append("its rows are those of no day")
        except Exception as error:
            faults = [f"{type(error).__name__}: {str(error)[:500]}"]
        told = f"release {release.number}: {'; '.join(faults)}"
        self.told.check("a kept release is whole", not faults, told)

    def clean(self) -> None:
        """What the dead left is gone when it has grown old."""
        for _ in range(3):
            age(Path(self.killed.lake.root), 2)
            self._finish(self.killed, "maintain")
        left = sorted(files(Path(self.killed.lake.root)) - _needed(self.killed.lake))
        self.told.check("nothing is left of the dead", not left, f"{len(left)}: {left[:5]}")
        self._check("maintain")


def unlike_upstream(connection: Any, library: Library) -> list[str]:
    """What the marts do not have as the desk's own database has it; counted by SQLite."""
    sides = {
        "loans": (
            "select loan_id, book_id, branch, lent_on::varchar, returned_on::varchar"
            " from marts.fct_loans",
            "select loan_id, book_id, branch, lent_on, returned_on from loans",
        ),
        "visits": (
            "select visited_on::varchar, visits from marts.fct_daily_visits",
            "select visited_on, count(*) from visits group by 1",
        ),
        "books": (
            "select book_id, title, shelf from marts.dim_book where valid_to is null",
            "select book_id, title, shelf from books",
        ),
        "loans by town": (
            "select town, shelf, loans, still_out from marts.rpt_loans_by_town",
            "select case branch when 'N' then 'Norrby' else 'Sundvik' end, shelf, count(*),"
            " sum(returned_on is null) from loans join books using (book_id) group by 1, 2",
        ),
    }
    with library.upstream() as desk:
        return [
            f"{what} differ"
            for what, (ours, theirs) in sides.items()
            if sorted(connection.execute(ours).fetchall(), key=repr)
            != sorted(desk.execute(theirs).fetchall(), key=repr)
        ]


def _catalog_number(lake: Lake) -> int | None:
    """In a process of its own: DuckDB would show this one a catalog that it has open."""
    code = (
        "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True)"
        ".execute('select number from tarn.catalog').fetchone()[0])"
    )
    command = [sys.executable, "-c", code, str(catalog.path(lake))]
    done = subprocess.run(command, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


def _needed(lake: Lake) -> set[str]:
    """What may be in a lake at rest: logs, and files of versions that somebody may read."""
    wanted = {path for path in files(Path(lake.root)) if _is_log(path)}
    versions: set[tuple[str, int | None]] = {(name, None) for name in lake.names()}
    for release in releases.releases(lake):
        versions |= {(name, pin.version) for name, pin in release.tables.items()}
    for name, version in versions:
        table = DeltaTable(lake.uri(name), version=version)
        uris = (unquote(uri.removeprefix("file://")) for uri in table.file_uris())
        wanted |= {uri.removeprefix(f"{lake.root}/") for uri in uris}
    return wanted


def _is_log(path: str) -> bool:
    name = path.rpartition("/")[2]
    if path.startswith(("_tarn/releases/", "_tarn/views/")) or path == catalog.FILE:
        return "#" not in name
    ours = name == "_last_checkpoint" or name.endswith((".json", ".checkpoint.parquet"))
    return "/_delta_log/" in path and ours and not name.startswith("_commit")


class _Readers:
    """A process that reads as long as it is asked to."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __enter__(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.drills.reading", self.root]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        return self.process

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _tell_readers(told: Drill, said: str) -> None:
    if not told.check("readers lived to the end", bool(said)):
        return
    found = json.loads(said)
    for way, count in found["reads"].items():
        seen = len(found["seen"][way])
        told.did[f"reads through {way}"] += count
        told.checked[f"releases seen through {way}"] += seen
    for fault in list(dict.fromkeys(found["faults"]))[:10]:
        told.fault(f"a reader saw: {fault}")
    told.checked["reads without error"] += sum(found["reads"].values())
