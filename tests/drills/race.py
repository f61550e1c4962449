"""Four writers and four readers on one table, while it is compacted, vacuumed and released.

The writers make so many changes each; readers and upkeep go on until upkeep has deleted something.

Rows of kind `own` are appended, each writer's numbered in order. A merge raises a counter that all
share and adds the row that tells of it, in one commit: so in any version the counters' sum is the
number of such rows, and nobody's numbers have a hole.
"""

import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.storage import releases
from tarn.storage.duck import select_from
from tarn.storage.lake import Lake
from tarn.storage.policy import Policy
from tarn.storage.releases import Pin, pinned
from tarn.storage.upkeep.maintain import maintain
from tarn.storage.writer import write
from tests.drills.telling import Drill

WRITERS = READERS = 4
_TABLE = "raw_race.counts"
_COUNTERS = 3
_SCHEMA = pa.schema(
    {"kind": pa.string(), "name": pa.string(), "number": pa.int64(), "value": pa.int64()}
)
_RULES = {"defaults": {"compact_from": 4}, "releases": {"keep": "0 days", "at_least": 3}}
_GRACE = 20
"""Seconds that a file stays when no release needs it: longer than a read or a write takes."""
_LONGEST = 900
"""Seconds to wait for upkeep to delete something."""
_STATE = """
    select coalesce(sum(value) filter (kind = 'counter'), 0),
        count(*) filter (kind = 'merged'),
        count(*) - count(distinct (kind, name, number)),
        count(*) filter (kind = 'own')
    from rows
"""
_HOLES = """
    select kind, name, count(*), max(number) from rows where kind != 'counter'
    group by all having count(*) != max(number)
"""


def drill(seed: int, rounds: int, folder: Path) -> Drill:
    """Race for so many changes by each writer."""
    told = Drill("race", seed, rounds)
    lake = _lake(folder)
    start = [("counter", f"c{i}", 0, 0) for i in range(_COUNTERS)]
    write(lake, _TABLE, _rows(start), mode="append")
    _release(lake)
    context = multiprocessing.get_context("spawn")
    over, found = _Over(context.Event(), context.Event()), context.Queue()
    jobs: list[Callable[..., None]] = [_write] * WRITERS + [_read] * READERS + [_keep]
    arguments = [(job, folder, seed * 100 + i, rounds, over, found) for i, job in enumerate(jobs)]
    processes = [context.Process(target=_work, args=each) for each in arguments]
    for process in processes:
        process.start()
    counts = [found.get() for _ in range(WRITERS)]
    over.vacuumed.wait(_LONGEST)
    over.all.set()
    counts += [found.get() for _ in processes[WRITERS:]]
    for process in processes:
        process.join()
    for did, _, faults in counts:
        told.did.update(did)
        for fault in faults[:5]:
            told.fault(fault)
    told.check("upkeep deleted files meanwhile", over.vacuumed.is_set())
    _check_end(told, lake, sum((Counter(expected) for _, expected, _ in counts), Counter()))
    return told


def _check_end(told: Drill, lake: Lake, expected: "Counter[str]") -> None:
    """Each update that a writer was told of is there, once."""
    table = lake.table(_TABLE)
    assert table is not None
    wrong = _wrong(table)
    told.check("the last version is consistent", not wrong, f"{wrong}")
    with duckdb.connect() as connection:
        connection.execute(f"create view rows as {select_from(table)}")
        found = dict(
            connection.execute(
                "select kind || ' ' || name, count(*) from rows where kind != 'counter' group by 1"
                " union all select name, value from rows where kind = 'counter'"
            ).fetchall()
        )
    differ = {
        k: (expected[k], found.get(k, 0))
        for k in {*expected, *found}
        if expected[k] != found.get(k, 0)
    }
    told.check("every update is there once", not differ, f"(done, found): {differ}")
    for release in releases.releases(lake):
        pin = release.tables[_TABLE]
        wrong = _wrong(pinned(lake, _TABLE, pin), pin)
        told.check("a kept release is consistent", not wrong, f"release {release.number}: {wrong}")


def _lake(folder: Path) -> Lake:
    root = folder / "lake"
    root.mkdir(exist_ok=True)
    policy = Policy.model_validate(_RULES)
    # Shorter than a policy may say, so that there is something to vacuum.
    policy = policy.model_copy(update={"vacuum_after": timedelta(seconds=_GRACE)})
    return Lake(str(root), policy=policy)


def _rows(rows: list[tuple[str, str, int, int]]) -> pa.Table:
    names = _SCHEMA.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], _SCHEMA)


def _release(lake: Lake) -> None:
    table = lake.table(_TABLE)
    assert table is not None
    releases.publish(lake, {_TABLE: Pin.of(table)}, releases.current(lake), {"drill": "race"})


def _work(
    job: "Callable[[Lake, random.Random, int, _Over, _Told], None]",
    folder: Path,
    seed: int,
    rounds: int,
    over: "_Over",
    found: "Queue[Any]",
) -> None:
    """One process: its counts, the updates it made, and its faults."""
    told = _Told()
    try:
        job(_lake(folder), random.Random(seed), rounds, over, told)
    except Exception as error:
        told.faults.append(f"{job.__name__} died: {type(error).__name__}: {error}")
    found.put((dict(told.did), dict(told.made), told.faults))


@dataclass(frozen=True)
class _Over:
    """What the processes wait for."""

    all: Event
    vacuumed: Event


class _Told:
    def __init__(self) -> None:
        self.did: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.faults: list[str] = []


def _write(lake: Lake, chance: random.Random, rounds: int, _: "_Over", told: _Told) -> None:
    name = f"w{os.getpid()}"
    while told.did["appends"] + told.did["merges"] < rounds:
        kind = chance.choice(["own", "merged"])
        number = told.made[f"{kind} {name}"] + 1
        row = (kind, name, number, 0)
        try:
            if kind == "own":
                write(lake, _TABLE, _rows([row]), mode="append")
            else:
                counter = f"c{chance.randrange(_COUNTERS)}"
                raised = _Raised(lake, counter, row)
                write(lake, _TABLE, raised, mode="merge", keys=["kind", "name", "number"])
                told.made[counter] += 1
                told.did["merges read again"] += raised.reads - 1
        except TarnError as error:
            if "other writers" not in error.what:
                told.faults.append(f"writer: {error}")
                return
            told.did["writes refused, and done again"] += 1
            continue
        told.made[f"{kind} {name}"] += 1
        told.did["appends" if kind == "own" else "merges"] += 1


class _Raised:
    """A counter as the table has it, raised by one: read anew each time a merge is tried."""

    def __init__(self, lake: Lake, counter: str, row: tuple[str, str, int, int]) -> None:
        self.lake, self.counter, self.row = lake, counter, row
        self.reads = 0

    def __call__(self) -> pa.RecordBatchReader:
        self.reads += 1
        table = self.lake.table(_TABLE)
        assert table is not None
        with duckdb.connect() as connection:
            found = connection.execute(
                f"select value from ({select_from(table)}) where kind = 'counter' and name = ?",
                [self.counter],
            ).fetchall()
        assert len(found) == 1, found
        return _rows([("counter", self.counter, 0, found[0][0] + 1), self.row]).to_reader()


def _read(lake: Lake, chance: random.Random, _: int, over: "_Over", told: _Told) -> None:
    last: Counter[str] = Counter()
    while not over.all.is_set():
        way = chance.choice(["release", "version"])
        began = time.monotonic()
        try:
            pin = None
            if way == "release":
                release = releases.current(lake)
                assert release is not None
                pin = release.tables[_TABLE]
            table = pinned(lake, _TABLE, pin) if pin else lake.table(_TABLE)
            assert table is not None
            wrong = _wrong(table, pin)
            version = table.version()
        except Exception as error:
            if time.monotonic() - began > _GRACE:
                told.did["reads slower than the grace"] += 1
                continue
            told.faults.append(f"reader of a {way}: {type(error).__name__}: {str(error)[:300]}")
            continue
        told.did[f"reads of a {way}"] += 1
        if wrong:
            told.faults.append(f"reader of {way}, version {version}: {wrong}")
        if version < last[way]:
            told.faults.append(f"reader: {way} went from version {last[way]} to {version}")
        last[way] = version


def _wrong(table: DeltaTable, pin: Pin | None = None) -> list[str]:
    with duckdb.connect() as connection:
        connection.execute("set threads = 1")
        connection.execute(f"create temp table rows as {select_from(table)}")
        state = connection.execute(_STATE).fetchone()
        holes = connection.execute(_HOLES).fetchall()
        count = connection.execute("select count(*) from rows").fetchone()
    assert state is not None
    assert count is not None
    raised, merged, twice, _ = state
    found = []
    if raised != merged:
        found.append(f"counters say {raised}, rows {merged}")
    if twice:
        found.append(f"{twice} rows twice")
    if holes:
        found.append(f"holes: {holes[:3]}")
    if pin and count[0] != pin.rows:
        found.append(f"{count[0]} rows, the release says {pin.rows}")
    return found


def _keep(lake: Lake, chance: random.Random, _: int, over: "_Over", told: _Told) -> None:
    """Publish, compact and vacuum."""
    while not over.all.is_set():
        time.sleep(chance.uniform(0, 0.3))
        with_release = chance.random() < 0.7
        if with_release:
            _release(lake)
            told.did["releases"] += 1
        upkeep = maintain(lake)
        told.did["rounds of upkeep"] += 1
        for table in upkeep.tables:
            for kind, outcome in table.done.items():
                told.did[f"files {kind}ed"] += outcome.files_before
                told.did["files left to another writer"] += outcome.overtaken
            if table.failed:
                told.faults.append(f"upkeep: {table.note}")
        told.did["files vacuumed"] += upkeep.files
        if upkeep.files:
            over.vacuumed.set()
        told.did["log entries trimmed"] += upkeep.log_entries
        told.did["releases expired"] += len(upkeep.expired)
