"""Whatever is done to a lake, in whatever order: it holds what a plain model of it holds.

A Hypothesis state machine appends, merges, deletes, replaces, compacts, vacuums, expires, releases
and rolls back, on a lake on disk. `python -m tests.drills model` runs it for longer.
"""

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, note, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tarn.storage import releases
from tarn.storage.lake import Lake
from tarn.storage.policy import Policy
from tarn.storage.releases import Pin
from tarn.storage.upkeep.maintain import maintain
from tarn.storage.writer import write

AT_LEAST = 3
POLICY = Policy.model_validate(
    {
        "defaults": {"compact_from": 2},
        "releases": {"keep": "0 days", "at_least": AT_LEAST},
        "vacuum_after": "1 day",
    }
)
TABLES = {"raw.plain": (), "raw.parted": ("part",)}
"""By name, how they are partitioned."""
SCHEMA = pa.schema({"key": pa.int64(), "part": pa.string(), "value": pa.string()})
Row = tuple[int, str, str | None]
Held = Counter[Row]
"""Rows of one version of a table, in no order."""
KEYS = st.integers(0, 12)
VALUES = st.sampled_from(["a", "b", None])
DID: Counter[str] = Counter()
"""How often each thing was done; for the drill to tell."""


def part_of(key: int) -> str:
    """A key is always in the same partition, as merges by key need it."""
    return "odd" if key % 2 else "even"


KEYED = st.dictionaries(KEYS, VALUES, min_size=1, max_size=5)


class LakeMachine(RuleBasedStateMachine):
    """A lake, and what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tarn-machine-"))
        self.lake = Lake(str(self.folder), policy=POLICY)
        self.versions: dict[str, dict[int, Held]] = {name: {} for name in TABLES}
        """Every version that was ever made, with its rows."""
        self.readable: dict[str, int] = dict.fromkeys(TABLES, 0)
        """Versions from this one on are younger than the grace, or were the newest within it."""
        self.releases: dict[int, dict[str, int]] = {}
        """By number, which version of each table: those that must be kept."""
        self.expiring: dict[int, dict[str, int]] = {}
        """Those expired within the grace."""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # Changes of rows

    @initialize(rows=KEYED)
    def found(self, rows: dict[int, str | None]) -> None:
        for name, partitions in TABLES.items():
            self._write(name, _table(rows), mode="append", partition_by=partitions)
            self._expect(name, _held(rows))

    @rule(name=st.sampled_from(sorted(TABLES)), rows=KEYED)
    def insert_only(self, name: str, rows: dict[int, str | None]) -> None:
        there = {row[0] for row in self._newest(name)}
        new = _held({key: value for key, value in rows.items() if key not in there})
        self._write(name, _table(rows), mode="insert", keys=["key"])
        self._expect(name, self._newest(name) + new)

    @rule(name=st.sampled_from(sorted(TABLES)), rows=KEYED, gone=st.sets(KEYS, max_size=3))
    def merge(self, name: str, rows: dict[int, str | None], gone: set[int]) -> None:
        marked = _table(rows | dict.fromkeys(gone))
        marked = marked.append_column(
            "gone", pa.array([key in gone for key in marked["key"].to_pylist()])
        )
        self._write(name, marked, mode="merge", keys=["key"], deleted="gone")
        there = Counter({row: n for row, n in self._newest(name).items() if row[0] not in gone})
        merged: Held = Counter()
        for row, count in there.items():
            key = row[0]
            merged[(key, row[1], rows[key]) if key in rows else row] += count
        known = {row[0] for row in there}
        fresh = {k: v for k, v in rows.items() if k not in known and k not in gone}
        self._expect(name, merged + _held(fresh))

    @rule(name=st.sampled_from(sorted(TABLES)), rows=KEYED)
    def append(self, name: str, rows: dict[int, str | None]) -> None:
        """Only new keys: a key that is there twice cannot be merged by."""
        there = {row[0] for row in self._newest(name)}
        new = {key + 100 * (key in there) + 1000 * len(self.versions[name]): value
               for key, value in rows.items()}  # fmt: skip
        self._write(name, _table(new), mode="append")
        self._expect(name, self._newest(name) + _held(new))

    @rule(name=st.sampled_from(sorted(TABLES)), below=st.integers(0, 13))
    def delete(self, name: str, below: int) -> None:
        self._write(name, _table({}), mode="replace_where", where=f"key < {below}")
        self._expect(name, Counter({r: n for r, n in self._newest(name).items() if r[0] >= below}))

    @rule(name=st.sampled_from(sorted(TABLES)), rows=KEYED)
    def replace_where(self, name: str, rows: dict[int, str | None]) -> None:
        odd = {key: value for key, value in rows.items() if key % 2}
        self._write(name, _table(odd), mode="replace_where", where="part = 'odd'")
        kept = Counter({r: n for r, n in self._newest(name).items() if r[1] != "odd"})
        self._expect(name, kept + _held(odd))

    @rule(name=st.sampled_from(sorted(TABLES)), rows=KEYED)
    def replace(self, name: str, rows: dict[int, str | None]) -> None:
        self._write(name, _table(rows), mode="replace", partition_by=TABLES[name])
        self._expect(name, _held(rows))

    # Releases

    @rule()
    def release(self) -> None:
        now = {name: self._latest(name) for name in TABLES}
        before = releases.current(self.lake)
        tables = {name: Pin.of(self._read(name, version)) for name, version in now.items()}
        made = releases.publish(self.lake, tables, before, {"made_by": "machine"})
        self.releases[made.number] = now
        DID["releases"] += 1

    @precondition(lambda self: self.releases)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.releases)))
        made = releases.rollback(self.lake, number)
        self.releases[made.number] = self.releases[number]
        DID["rollbacks"] += 1

    # Upkeep

    @rule()
    def two_days_pass(self) -> None:
        """What is older than the grace is fair game from now on, but for the newest version."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                status = path.stat()
                os.utime(path, (status.st_atime, status.st_mtime - 2 * 86_400))
        self.readable = {name: self._latest(name) for name in TABLES}
        self.expiring = {}
        DID["times that two days passed"] += 1

    @rule()
    def maintain(self) -> None:
        """Compact, publish, expire, vacuum."""
        newest = {name: self._newest(name) for name in TABLES}
        done = maintain(self.lake)
        assert not [table.note for table in done.tables if table.failed]
        for name, rows in newest.items():
            table = self.lake.table(name)
            assert table is not None
            # What upkeep commits has the rows that were there.
            for version in range(self._latest(name) + 1, table.version() + 1):
                self.versions[name][version] = rows
                DID["compactions"] += 1
        if done.release:
            pins = {name: pin.version for name, pin in done.release.tables.items()}
            for name, version in pins.items():
                before = max(self.releases)
                assert self.versions[name][version] == self._of_release(before, name)
            self.releases[done.release.number] = pins
        for number in done.expired:
            assert number not in sorted(self.releases)[-AT_LEAST:]
            self.expiring[number] = self.releases.pop(number)
        note(f"upkeep removed {done.files} files, {done.log_entries} log entries")
        DID["rounds of upkeep"] += 1
        DID["files vacuumed"] += done.files
        DID["log entries trimmed"] += done.log_entries
        DID["releases expired"] += len(done.expired)

    # What holds at any time

    @invariant()
    def the_newest_version_is_as_the_model_says(self) -> None:
        for name, versions in self.versions.items():
            if versions:
                table = self.lake.table(name)
                assert table is not None
                assert table.version() == self._latest(name)
                assert _rows(table) == versions[table.version()], name

    @invariant()
    def kept_releases_are_as_they_were(self) -> None:
        assert releases.numbers(self.lake) == sorted(self.releases)
        for number, pins in {**self.releases, **self.expiring}.items():
            for name, version in pins.items():
                assert _rows(self._read(name, version)) == self._of(name, version), (number, name)
        for number, pins in self.releases.items():
            kept = releases.read(self.lake, number)
            assert {name: pin.version for name, pin in kept.tables.items()} == pins
            for name, pin in kept.tables.items():
                assert pin.rows == self._of(name, pin.version).total(), (number, name)

    @invariant()
    def young_versions_can_be_read(self) -> None:
        for name, versions in self.versions.items():
            for version in range(self.readable[name], len(versions)):
                assert _rows(self._read(name, version)) == versions[version], (name, version)

    @invariant()
    def history_names_every_young_version(self) -> None:
        for name, versions in self.versions.items():
            if versions:
                table = self.lake.table(name)
                assert table is not None
                told = [entry["version"] for entry in table.history()]
                assert told == sorted(told, reverse=True)
                assert set(told) >= set(range(self.readable[name] + 1, len(versions)))

    # Below: how it is done

    def _write(self, name: str, rows: pa.Table, **how: Any) -> None:
        written = write(self.lake, name, rows, **how)
        DID[f"writes by {how['mode']}"] += 1
        note(f"{name}: version {written.version}")

    def _expect(self, name: str, rows: Held) -> None:
        """The rows of the version just made; where nothing changed, there may be none."""
        table = self.lake.table(name)
        assert table is not None
        versions = self.versions[name]
        rows = Counter({row: count for row, count in rows.items() if count})
        if table.version() == len(versions) - 1:
            assert rows == versions[table.version()], "a change was lost"
            return
        assert table.version() == len(versions)
        versions[table.version()] = rows

    def _latest(self, name: str) -> int:
        return len(self.versions[name]) - 1

    def _newest(self, name: str) -> Held:
        return self.versions[name][self._latest(name)]

    def _of(self, name: str, version: int) -> Held:
        return self.versions[name][version]

    def _of_release(self, number: int, name: str) -> Held:
        return self._of(name, self.releases[number][name])

    def _read(self, name: str, version: int) -> Any:
        table = self.lake.table(name, version)
        assert table is not None
        return table


def _table(rows: dict[int, str | None]) -> pa.Table:
    listed = [{"key": key, "part": part_of(key), "value": rows[key]} for key in rows]
    return pa.Table.from_pylist(listed, SCHEMA)


def _held(rows: dict[int, str | None]) -> Held:
    return Counter((key, part_of(key), value) for key, value in rows.items())


def _rows(table: Any) -> Held:
    """The rows as their files have them, read by Arrow alone, partition values by the log."""
    found: Held = Counter()
    for file in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        held = pq.ParquetFile(f"{_folder(table)}/{file['path']}").read()
        parts = held["part"] if "part" in held.column_names else None
        for index in range(held.num_rows):
            part = parts[index].as_py() if parts is not None else file["partition.part"]
            found[held["key"][index].as_py(), part, held["value"][index].as_py()] += 1
    return found


def _folder(table: Any) -> str:
    return str(table.table_uri).removeprefix("file://").rstrip("/")


LakeMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("TARN_MACHINE_EXAMPLES", "12")),
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestLake = LakeMachine.TestCase
