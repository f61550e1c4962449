"""Upkeep changes files, never rows: what a kept release reads stays, whatever happens meanwhile."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tarn.errors import TarnError
from tarn.storage import catalog, readers, releases
from tarn.storage.datafiles import DataFile, Reader, data_files
from tarn.storage.duck import prepare
from tarn.storage.lake import Lake
from tarn.storage.policy import Layout, Policy, Releases
from tarn.storage.releases import Pin, Release
from tarn.storage.upkeep import maintain as upkeep
from tarn.storage.upkeep import rewrite, tiers, vacuum
from tarn.storage.upkeep.maintain import expired, maintain
from tarn.storage.upkeep.tiers import period_end, worth_compacting
from tarn.storage.writer import write

DAY = timedelta(days=1)
BATCHES = 5
POLICY = {
    "defaults": {"compact_from": 4},
    "layers": {"raw": {"cold": {"after": "180 days", "partition": "month"}}},
    "tables": {"marts.clustered": {"cluster_by": ["label", "number"]}},
    "releases": {"keep": "10 days", "at_least": 2},
}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake with small files, old partitions, a changed schema, odd names, and two releases."""
    made = Lake(str(tmp_path / "lake"), policy=Policy.model_validate(POLICY))
    Path(made.root).mkdir()
    for batch in range(BATCHES):
        write(made, "raw.sales", sales(batch), mode="append", partition_by=["month"])
        write(made, "marts.odd", odd(batch), mode="append", partition_by=["label"], evolve=True)
        write(made, "marts.clustered", odd(batch).drop(["late"]), mode="append")
        if batch in (1, BATCHES - 1):
            publish(made)
    write(made, "marts.odd", odd(1).slice(0, 1), mode="replace_where", where="number = 100")
    return made


def sales(batch: int) -> pa.Table:
    first = batch * 1000
    return pa.table(
        {
            "month": [f"2025-{1 + batch % 2:02}"] * 500 + ["2999-01"] * 500,
            "line": list(range(first, first + 1000)),
            "at": [datetime(2025, 1, 1, 0, 0, batch)] * 1000,
            "day": [date(2025, 1, 1 + batch)] * 1000,
            "amount": pa.array([None, *range(999)], pa.decimal128(12, 2)),
        }
    )


def odd(batch: int) -> pa.Table:
    first = batch * 100
    rows = pa.table(
        {
            "label": ["a b", "c/d", "é=ü%20", None] * 25,
            "number": list(range(first, first + 100)),
            "tags": [[str(batch), None], None] * 50,
        }
    )
    late = pa.array([None if batch < 3 else batch] * 100, pa.int64())
    return rows.append_column("late", late)


def publish(lake: Lake) -> Release:
    pins = {name: Pin.of(table) for name in lake.names() if (table := lake.table(name))}
    return releases.publish(lake, pins, releases.current(lake), {"test": "yes"})


@cache
def reader() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    prepare(connection, Lake("/"))
    return connection


def content(lake: Lake, name: str, version: int) -> str:
    """Hash of the rows of a version, whatever their order, as DuckDB reads them."""
    scan = f"delta_scan('{lake.uri(name)}', version => {version})"
    rows = reader().execute(f"select s::varchar from {scan} s order by 1").fetchall()
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def contents(lake: Lake) -> dict[tuple[int, str], str]:
    """What each kept release reads, by its number and table."""
    return {
        (release.number, name): content(lake, name, pin.version)
        for release in releases.releases(lake)
        for name, pin in release.tables.items()
    }


def in_days(days: float) -> datetime:
    return datetime.now(UTC) + days * DAY


def newest(lake: Lake, name: str) -> DeltaTable:
    table = lake.table(name)
    assert table is not None
    return table


def tree(lake: Lake) -> dict[str, tuple[int, int]]:
    """Each file below the root with size and time of change."""
    found = (path for path in Path(lake.root).rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_kept_releases_read_the_same_before_and_after(lake: Lake) -> None:
    before = contents(lake)
    latest = {name: content(lake, name, newest(lake, name).version()) for name in lake.names()}
    done = maintain(lake, now=in_days(2))
    assert not [table.note for table in done.tables if table.note]
    assert {table.name: set(table.done) for table in done.tables} == {
        "marts.clustered": {"compact"},
        "marts.odd": {"compact"},
        "raw.sales": {"cool", "compact"},
    }
    after = contents(lake)
    assert {key: after[key] for key in before} == before
    for name in lake.names():
        assert content(lake, name, newest(lake, name).version()) == latest[name]
        # Another reader, which knows the log and Parquet by itself.
        rows = pl.read_delta(lake.uri(name), version=newest(lake, name).version())
        assert rows.height == Pin.of(newest(lake, name)).rows
    assert done.release is not None
    assert done.release.number == 3
    assert set(done.release.made_by) == {"upkeep"}
    moved = {change.name for change in releases.diff(releases.read(lake, 2), done.release)}
    # The other table had been changed since, and that change nobody released.
    assert moved == {"marts.clustered", "raw.sales"}
    with duckdb.connect(str(catalog.path(lake)), read_only=True) as connection:
        prepare(connection, lake)
        counted = connection.execute("select count(*), sum(line) from raw.sales").fetchone()
    assert counted == (1000 * BATCHES, sum(range(1000 * BATCHES)))


def test_the_next_run_has_nothing_to_do(lake: Lake) -> None:
    maintain(lake, now=in_days(2))
    again = maintain(lake, now=in_days(2))
    assert (again.files, again.log_entries, again.release) == (0, 0, None)
    assert not any(table.done for table in again.tables)


def test_files_get_the_declared_layout_and_order(lake: Lake) -> None:
    maintain(lake, now=in_days(0))
    by_partition: dict[str, list[str]] = {}
    for file in data_files(newest(lake, "raw.sales")):
        by_partition.setdefault(file.partition["month"], []).append(file.key)
    assert {month: len(keys) for month, keys in by_partition.items()} == {
        "2025-01": 1, "2025-02": 1, "2999-01": 1
    }  # fmt: skip
    assert by_partition["2025-01"][0].endswith(".zstd_9_1048576.parquet")
    assert by_partition["2999-01"][0].endswith(".zstd_1_122880.parquet")
    clustered = data_files(newest(lake, "marts.clustered"))
    rows = pq.read_table(f"{lake.uri('marts.clustered')}/{clustered[0].key}")
    keys = list(zip(rows["label"].to_pylist(), rows["number"].to_pylist(), strict=True))
    assert keys == sorted(keys, key=lambda key: (key[0] is None, *key))
    entry = newest(lake, "marts.clustered").history(1)[0]
    assert entry["tarn.upkeep"] == "compact"


def test_a_dry_run_changes_no_byte(lake: Lake) -> None:
    catalog.ensure(lake)
    (Path(lake.root) / "marts/odd/part-orphan.parquet").write_bytes(b"x")
    before = tree(lake)
    dry = maintain(lake, now=in_days(30), dry_run=True)
    assert tree(lake) == before
    wet = maintain(lake, now=in_days(30))
    assert dry.files >= 1
    assert dry.expired == []
    assert {t.name: set(t.done) for t in dry.tables} == {t.name: set(t.done) for t in wet.tables}


def test_what_no_release_needs_goes_when_the_grace_has_passed(lake: Lake) -> None:
    write(lake, "marts.passing", pa.table({"x": [1]}), mode="replace")
    for value in range(15):
        write(lake, "marts.passing", pa.table({"x": [value]}), mode="replace")
    folder = Path(lake.uri("marts.passing"))
    assert maintain(lake, ["marts.passing"], now=in_days(0.9)).files == 0
    done = maintain(lake, ["marts.passing"], now=in_days(1.1))
    assert len(list(folder.glob("*.parquet"))) == 1
    assert done.files == 15
    assert done.log_entries > 5
    assert pl.read_delta(str(folder)).to_dicts() == [{"x": 14}]
    write(lake, "marts.passing", pa.table({"x": [99]}), mode="append")
    assert newest(lake, "marts.passing").to_pyarrow_table()["x"].to_pylist() == [99, 14]


def test_vacuum_agrees_with_delta_rs_about_what_is_needed(lake: Lake) -> None:
    pinned = upkeep.pinned_versions(lake, in_days(0))
    for name in lake.names():
        for extra in range(3):
            write(lake, name, newest(lake, name).to_pyarrow_table(), mode="replace")
            (Path(lake.uri(name)) / f"part-{extra}.parquet").write_bytes(b"orphan")
        garbage = vacuum.of_table(lake, name, pinned[name], in_days(2), DAY)
        ours = {path.removeprefix(name.replace(".", "/") + "/") for path, _ in garbage.files}
        theirs = newest(lake, name).vacuum(
            dry_run=True,
            retention_hours=0,
            enforce_retention_duration=False,
            keep_versions=sorted({*pinned[name], newest(lake, name).version()}),
            full=True,
        )
        assert ours
        assert ours <= {path.removeprefix("./") for path in theirs}


def test_the_log_is_cut_no_further_than_a_kept_release_reads(lake: Lake) -> None:
    for batch in range(BATCHES, 20):
        write(lake, "raw.sales", sales(batch), mode="append")
    publish(lake)
    keep = Policy.model_validate({**POLICY, "releases": {"keep": "10 days", "at_least": 1}})
    strict = Lake(lake.root, policy=keep)
    before = contents(lake)
    assert maintain(strict, now=in_days(11)).expired == [1, 2, 3]
    # Somebody may be rolling back to an expired one: its files stay for the grace.
    for number in (1, 2):
        version = 1 if number == 1 else BATCHES - 1
        assert content(lake, "raw.sales", version) == before[number, "raw.sales"]
    done = maintain(strict, now=in_days(13))
    log = Path(lake.uri("raw.sales"), "_delta_log")
    assert done.log_entries > 5
    assert min(path.name for path in log.glob("*.json")) > f"{BATCHES - 1:020}.json"
    current = releases.current(lake)
    assert current is not None
    for name, pin in current.tables.items():
        assert content(lake, name, pin.version) == before[3, name]
    assert lake.table("raw.sales", 1) is None


@pytest.mark.parametrize("young", [60, 90], ids=["all of the tail", "the end of the tail"])
def test_a_thinned_log_keeps_its_last_versions_and_what_somebody_reads(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, young: int
) -> None:
    monkeypatch.setattr(vacuum, "LOG_ENTRIES", 25)
    name, log = "marts.passing", Path(lake.uri("marts.passing"), "_delta_log")
    for value in range(100):
        write(lake, name, pa.table({"x": [value]}), mode="append" if value % 15 else "replace")
        if value == 48:
            publish(lake)
        if value == 17:
            reading = readers.begin(lake, {name: value}) or ""
            assert reading
    before = {version: content(lake, name, version) for version in range(100)}
    vacuum.thin(lake, name, upkeep.pinned_versions(lake, in_days(0))[name])
    kept = readable(lake, name)
    assert {17, 48, *range(75, 100)} <= kept
    assert len(kept) < 60
    assert {version: content(lake, name, version) for version in kept} == {
        version: before[version] for version in kept
    }
    # Versions are a week old, but for the young ones and the one before them: those stay whole.
    for path in (*log.glob("*.json"), *log.parent.glob("*.parquet")):
        os.utime(path, (age := time.time() - 7 * 86_400, age))
    for version in kept & set(range(young, 100)):
        os.utime(log / f"{version:020}.json")
    assert maintain(lake, [name]).files > 10
    for version in (17, 48, *(kept & set(range(young - 1, 100)))):
        assert content(lake, name, version) == before[version]
    readers.end(lake, reading)
    maintain(lake, [name])
    with pytest.raises(duckdb.Error):
        content(lake, name, 17)
    assert content(lake, name, 48) == before[48]
    for value in range(100, 130):
        write(lake, name, pa.table({"x": [value]}), mode="append")
    vacuum.thin(lake, name, [])
    assert min(readable(lake, name)) > 90
    assert newest(lake, name).to_pyarrow_table().num_rows > 30


def test_versions_of_a_checkpoint_in_parts_are_readable_too(lake: Lake) -> None:
    name, log = "marts.passing", Path(lake.uri("marts.passing"), "_delta_log")
    for value in range(18):
        write(lake, name, pa.table({"x": [value]}), mode="replace")
    (checkpoint,) = log.glob("*.checkpoint.parquet")
    first = int(checkpoint.name[:20])
    # As Spark makes them of large tables; nothing before it is there any more.
    checkpoint.rename(log / f"{first:020}.checkpoint.0000000001.0000000001.parquet")
    (log / "_last_checkpoint").unlink()
    for version in range(first):
        (log / f"{version:020}.json").unlink()
    for path in (*log.glob("*.json"), *log.parent.glob("*.parquet")):
        os.utime(path, (age := time.time() - 7 * 86_400, age))
    for version in range(13, 18):
        os.utime(log / f"{version:020}.json")
    before = {version: content(lake, name, version) for version in range(12, 18)}
    assert maintain(lake, [name]).files == 12
    assert {version: content(lake, name, version) for version in before} == before


def readable(lake: Lake, name: str) -> set[int]:
    """The versions of a table that its log still tells of."""
    found = set()
    for version in range(newest(lake, name).version() + 1):
        with suppress(DeltaError, OSError):
            DeltaTable(lake.uri(name), version)
            found.add(version)
    return found


def test_what_dead_writers_left_goes_and_what_lives_or_is_not_ours_stays(lake: Lake) -> None:
    root = Path(lake.root)
    code = (
        "import os, pyarrow as pa; from deltalake import write_deltalake\n"
        "def rows():\n"
        "    while True: yield pa.record_batch({'x': [os.urandom(999) for _ in range(9999)]})\n"
        "s = pa.schema([('x', pa.binary())])\n"
        f"write_deltalake({str(root / 'marts/begun')!r},"
        " pa.RecordBatchReader.from_batches(s, rows()))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code])
    while not list((root / "marts").glob("begun/*.parquet#*")):
        time.sleep(0.05)
    writer.kill()
    writer.wait()
    half = root / "marts/half/part-00000-9b5ad5c8-0000-4ad1-8b79-1f6a2f3d3d3d-c000.parquet"
    half.parent.mkdir()
    half.write_bytes(b"x")
    orphan = root / "raw/sales/month=2025-01/part-00000-orphan.parquet"
    orphan.write_bytes(b"x")
    draft = root / "_tarn/upkeep/0123/part-0.parquet"
    draft.parent.mkdir(parents=True)
    draft.write_bytes(b"x")
    theirs = [root / "raw/sales/readme.txt", root / "notes.md", root / "catalog.duckdb.notes"]
    for path in theirs:
        path.write_bytes(b"x")
    assert maintain(lake, now=in_days(0.5)).files == 0
    done = maintain(lake, now=in_days(2))
    assert not any(path.exists() for path in (orphan, half.parent, draft, root / "marts/begun"))
    assert all(path.exists() for path in theirs)
    assert done.files >= 4


def test_a_table_whose_log_is_lost_is_left_alone(lake: Lake) -> None:
    log = Path(lake.uri("raw.sales"), "_delta_log")
    log.rename(log.with_name("elsewhere"))
    before = sorted(Path(lake.uri("raw.sales")).rglob("*.parquet"))
    done = maintain(lake, now=in_days(60))
    [table] = [table for table in done.tables if table.name == "raw.sales"]
    assert table.failed
    assert sorted(Path(lake.uri("raw.sales")).rglob("*.parquet")) == before


def test_features_that_upkeep_does_not_know_are_left_alone(lake: Lake) -> None:
    log = Path(lake.uri("marts.clustered"), "_delta_log", f"{0:020}.json")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    [protocol] = [entry["protocol"] for entry in entries if "protocol" in entry]
    protocol |= {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": []}
    protocol["writerFeatures"] = ["rowTracking", "domainMetadata"]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    before = tree(lake)
    [table] = maintain(lake, ["marts.clustered"], now=in_days(0)).tables
    assert "rowTracking" in str(table.note)
    assert not table.done
    assert tree(lake) == before


STEPS: Mapping[str, tuple[Any, str]] = {
    "writing files": (rewrite, "_adopt"),
    "committing": (rewrite, "_swap"),
    "publishing": (releases, "publish"),
    "drawing the catalog": (catalog, "build"),
    "forgetting a release": (releases, "forget"),
    "deleting": (vacuum, "delete"),
}


class Killed(BaseException):
    """Nothing may catch this, as nothing catches a kill -9."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("afterwards", [False, True], ids=["before", "after"])
def test_a_run_that_dies_at_any_step_breaks_nothing_and_the_next_one_ends_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, step: str, afterwards: bool
) -> None:
    keep = Policy.model_validate({**POLICY, "releases": {"keep": "1 days", "at_least": 1}})
    lake = Lake(lake.root, policy=keep)
    maintain(lake, ["marts.odd"], now=in_days(2))
    for _ in range(2):
        write(lake, "marts.odd", odd(1), mode="replace")
    before = contents(lake)
    module, name = STEPS[step]
    _kill(monkeypatch, module, name, afterwards)
    for days in (2, 4):
        with suppress_killed():
            maintain(lake, now=in_days(days))
        after = contents(lake)
        assert all(after[key] == before[key] for key in after if key in before)
    monkeypatch.undo()
    for days in (4, 6, 8):
        maintain(lake, now=in_days(days))
    after = contents(lake)
    [current] = releases.numbers(lake)
    for name in lake.names():
        assert after[current, name] == before[2, name]
        shown = newest(lake, name).version(), releases.read(lake, current).tables[name].version
        live = {file.key for v in shown for file in data_files(DeltaTable(lake.uri(name), v))}
        folder = Path(lake.uri(name))
        kept = {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")}
        assert {key for key in kept if not key.startswith("_delta_log")} == live
    assert not list(Path(lake.root, "_tarn/upkeep").rglob("*.parquet"))
    assert not list(Path(lake.root, "_tarn/expired").glob("*.json"))


def _kill(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, afterwards: bool) -> None:
    """Die at the second call, when the first has left its marks."""
    real: Callable[..., Any] = getattr(module, name)
    calls = 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and not afterwards:
            raise Killed
        result = real(*arguments, **options)
        if calls == 2:
            raise Killed
        return result

    monkeypatch.setattr(module, name, dying)


class suppress_killed:
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is Killed


def test_kill_nine_at_random_moments(lake: Lake) -> None:
    before = contents(lake)
    code = (
        "import sys; from datetime import UTC, datetime, timedelta\n"
        "from tarn.storage.lake import Lake; from tarn.storage.policy import Policy\n"
        "from tarn.storage.upkeep.maintain import maintain\n"
        f"lake = Lake({lake.root!r}, policy=Policy.model_validate({POLICY!r}))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "maintain(lake, now=datetime.now(UTC) + timedelta(days=2))"
    )
    chance = random.Random(20)
    for _ in range(5):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", code], **pipes)  # type: ignore[call-overload]
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"go\n")
        process.stdin.flush()
        time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        process.communicate()
        after = contents(lake)
        assert {key: after[key] for key in before} == before
    maintain(lake, now=in_days(2))
    after = contents(lake)
    assert {key: after[key] for key in before} == before
    assert all(len(data_files(newest(lake, n))) <= 5 for n in lake.names())


def test_writers_and_readers_go_on_while_files_are_rewritten(tmp_path: Path) -> None:
    policy = Policy.model_validate({"defaults": {"compact_from": 2}, "vacuum_after": "1 hours"})
    lake = Lake(str(tmp_path / "lake"), policy=policy)
    Path(lake.root).mkdir()
    write(lake, "raw.log", pa.table({"who": [-1], "n": [-1]}), mode="append")
    publish(lake)
    failures: list[BaseException] = []
    writing = threading.Event()

    def guarded(job: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                job()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def append(who: int) -> Callable[[], None]:
        def job() -> None:
            for n in range(20):
                rows = pa.table({"who": [who], "n": [n]})
                write(lake, "raw.log", rows, mode="append")
                if n % 5 == 4:
                    last = pa.table({"who": [who], "n": [n]})
                    write(lake, "raw.log", last, mode="merge", keys=["who", "n"])

        return job

    def reading() -> None:
        with duckdb.connect() as connection:
            prepare(connection, lake)
            while not writing.is_set():
                release = releases.current(lake)
                assert release is not None
                pin = release.tables["raw.log"]
                scan = f"delta_scan('{lake.uri('raw.log')}', version => {pin.version})"
                row = connection.execute(f"select count(*) from {scan}").fetchone()
                assert row == (pin.rows,)

    def maintaining() -> None:
        while not writing.is_set():
            maintain(lake)

    writers = [guarded(append(who)) for who in range(3)]
    others = [guarded(reading), guarded(maintaining)]
    for thread in writers:
        thread.join()
    writing.set()
    for thread in others:
        thread.join()
    assert not failures, "".join(traceback.format_exception(failures[0]))
    rows = newest(lake, "raw.log").to_pyarrow_table().to_pylist()
    expected = [(-1, -1)] + [(who, n) for who in range(3) for n in range(20)]
    assert sorted((row["who"], row["n"]) for row in rows) == expected
    kinds = [entry.get("tarn.upkeep") for entry in newest(lake, "raw.log").history()]
    assert "compact" in kinds


def test_a_group_that_somebody_changed_is_left_and_nothing_is_lost(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rewrite._swap

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(rewrite, "_swap", real)
        where = "label = 'c/d'"
        write(lake, "marts.odd", odd(0).slice(1, 1), mode="replace_where", where=where)
        real(*arguments)

    monkeypatch.setattr(rewrite, "_swap", overtaken)
    [table] = maintain(lake, ["marts.odd"], now=in_days(0)).tables
    assert table.done["compact"].overtaken == BATCHES
    rows = newest(lake, "marts.odd").to_pyarrow_table().to_pylist()
    assert [row["number"] for row in rows if row["label"] == "c/d"] == [1]
    assert len([row for row in rows if row["label"] == "a b"]) == 25 * BATCHES


def release(number: int, days_ago: float, **made_by: str) -> Release:
    made_at = (datetime.now(UTC) - days_ago * DAY).isoformat(timespec="seconds")
    return Release(number, {}, made_at, made_by)


def test_old_releases_expire_but_the_newest_and_the_way_back_stay() -> None:
    kept = [release(number, 100 - number * 10) for number in range(9, 0, -1)]
    policy = Releases(keep=35 * DAY, at_least=2)
    assert expired(kept, policy, datetime.now(UTC)) == [1, 2, 3, 4, 5, 6]
    back = [release(10, 0, rollback_to="3"), *kept]
    assert expired(back, policy, datetime.now(UTC)) == [1, 2, 4, 5, 6]
    still = [release(number, 500) for number in (2, 1)]
    assert expired(still, Releases(keep=DAY, at_least=1), datetime.now(UTC)) == [1]
    assert expired([], policy, datetime.now(UTC)) == []


def test_a_growing_table_is_rewritten_as_often_as_the_logarithm_of_its_files() -> None:
    def file(key: int, size: int) -> DataFile:
        return DataFile(str(key), str(key), size, 1, datetime.now(UTC), {})

    files: list[DataFile] = []
    rewritten = 0
    for key in range(1024):
        files.append(file(key, 1000))
        chosen = worth_compacting(files, Layout(), least=8)
        if chosen:
            size = sum(each.size for each in chosen)
            rewritten += size
            files = [each for each in files if each not in chosen] + [file(10_000 + key, size)]
    assert len(files) < 40
    assert rewritten < 10 * 1024 * 1000


@pytest.mark.parametrize(
    ("value", "end"),
    [
        (date(2017, 3, 31), date(2017, 4, 1)),
        (datetime(2017, 12, 31, 23, 0), date(2018, 1, 1)),
        ("2017-12", date(2018, 1, 1)),
        (201702, date(2017, 3, 1)),
        ("20170228", date(2017, 3, 1)),
        (2017, date(2018, 1, 1)),
        (53, None),
        ("2017-13", None),
        ("north", None),
    ],
)
def test_a_partition_tells_its_time(value: object, end: date | None) -> None:
    assert period_end(value) == end


def test_a_policy_that_does_not_fit_the_table_is_told_and_nothing_is_done(lake: Lake) -> None:
    cold = {"cold": {"after": "1 days", "partition": "store"}}
    wrong = Lake(lake.root, policy=Policy.model_validate({"tables": {"raw.sales": cold}}))
    [table] = maintain(wrong, ["raw.sales"], now=in_days(0)).tables
    assert "storage.yml: cold.partition is store" in str(table.note)
    assert not table.done
    with pytest.raises(TarnError, match=r"no table raw\.nothing"):
        maintain(wrong, ["raw.nothing"])


def test_tables_larger_than_memory_need_little_of_it(tmp_path: Path) -> None:
    """400 MB of rows are sorted and compacted by a process that takes less than 1 GiB."""
    lake = Lake(str(tmp_path / "lake"))
    Path(lake.root).mkdir()
    code = (
        "import os, resource, pyarrow as pa; from tarn.storage.lake import Lake\n"
        "from tarn.storage.policy import Policy\n"
        "from tarn.storage.upkeep.maintain import maintain\n"
        "p = Policy.model_validate({'defaults': {'cluster_by': ['key']}})\n"
        f"done = maintain(Lake({lake.root!r}, policy=p))\n"
        "assert done.tables[0].done['compact'].files_after, done\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    for part in range(10):
        text = pa.array([os.urandom(20).hex() * 5 for _ in range(20_000)])
        text = pa.concat_arrays([text] * 10)
        keys = pa.array([(i * 7919 + part) % 1_000_003 for i in range(len(text))])
        write(lake, "raw.wide", pa.table({"key": keys, "text": text}), mode="append")
    # A child of this process would count this one's memory as its own.
    start = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run({[sys.executable, '-c', code]!r}, check=True)",
    ]
    megabytes = int(subprocess.check_output(start, text=True))
    assert megabytes < 1024
    rows = newest(lake, "raw.wide")
    assert Pin.of(rows).rows == 2_000_000


def test_tiers_are_found_without_a_memory_of_their_own(lake: Lake) -> None:
    maintain(lake, now=in_days(0))
    table = newest(lake, "raw.sales")
    files = Reader.of(lake, "raw.sales")
    assert tiers.work(table, files, lake.policy.of("raw.sales"), in_days(0)) == []
    snappy = Policy.model_validate({"defaults": {"layout": {"codec": "snappy"}}})
    [work] = tiers.work(table, files, snappy.of("raw.sales"), in_days(0))
    assert (work.kind, work.files) == ("recompress", 3)
    assert tiers.work(table, files, snappy.of("raw.sales"), in_days(0), ["compact"]) == []
