"""What holds in every release of the library, and a process that looks at it all the time.

`python -m tests.drills.reading LAKE` reads until its standard input ends, through catalog.duckdb
as any DuckDB client does and through releases and versions, and then tells what it saw.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import duckdb

from tarn.storage import catalog, releases
from tarn.storage.duck import identifier, select_from
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin, Release, pinned

_PAUSE = 0.2
"""Seconds between reads: the commands that are killed need the processor too."""
_LOANS = "loan_id, book_id, branch, lent_on, returned_on"
_REPORT = """
    select b.town, d.shelf, count(*) as loans,
        count(*) filter (l.returned_on is null) as still_out
    from marts.fct_loans as l
    join seeds.branches as b using (branch)
    join marts.dim_book as d on l.book_id = d.book_id and d.valid_to is null
    group by all
"""


def _differ(first: str, second: str) -> str:
    return (
        f"select count(*) from ((({first}) except all ({second}))"
        f" union all (({second}) except all ({first})))"
    )


_WRONG_ROWS = {
    "a loan is there twice": "select count(*) - count(distinct loan_id) from marts.fct_loans",
    "loans are not those loaded": _differ(
        f"select {_LOANS} from marts.fct_loans", f"select {_LOANS} from raw_desk.loans"
    ),
    "visits are not those loaded": _differ(
        "from marts.fct_daily_visits",
        "select visited_on, count(*) from raw_desk.visits group by all",
    ),
    "books are not those loaded": _differ(
        "select book_id, title, shelf from marts.dim_book where valid_to is null",
        "select book_id, title, shelf from raw_desk.books",
    ),
    "the report is not of these loans and books": _differ("from marts.rpt_loans_by_town", _REPORT),
}
"""Queries over the tables of one release; each counts rows that must not be."""


def wrong(connection: duckdb.DuckDBPyConnection, rows: Mapping[str, int]) -> list[str]:
    """What does not hold among the tables a connection shows; rows: as the release counts them."""
    found = []
    for what, sql in _WRONG_ROWS.items():
        answer = connection.execute(sql).fetchone()
        if answer != (0,):
            found.append(f"{what}: {answer}")
    for name, count in rows.items():
        answer = connection.execute(f"select count(*) from {identifier(name)}").fetchone()
        if answer != (count,):
            found.append(f"{name} has {answer} rows, the release says {count}")
    return found


def shown(lake: Lake, release: Release) -> duckdb.DuckDBPyConnection:
    """A connection to a release's tables, by their versions alone."""
    connection = duckdb.connect()
    for name, pin in release.tables.items():
        connection.execute(f"create schema if not exists {identifier(name.partition('.')[0])}")
        connection.execute(
            f"create view {identifier(name)} as {select_from(_table(lake, name, pin))}"
        )
    return connection


def business(lake: Lake, name: str, pin: Pin) -> tuple[int, int]:
    """Rows, and a sum of hashes over the columns that do not tell of the load itself."""
    table = _table(lake, name, pin)
    columns = sorted(field.name for field in table.schema().fields)
    kept = [c for c in columns if not c.startswith("_") and c != "loaded_at"]
    chosen = ", ".join(identifier(column) for column in kept)
    with duckdb.connect() as connection:
        row = connection.execute(
            f"select count(*), coalesce(sum(hash({chosen})::hugeint), 0)"
            f" from ({select_from(table)})"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


def contents(lake: Lake, release: Release) -> dict[str, tuple[int, int]]:
    """By table, what its rows come to; without the ledger, which tells of the loads."""
    pins = {n: pin for n, pin in release.tables.items() if not n.startswith("tarn.")}
    return {name: business(lake, name, pin) for name, pin in pins.items()}


_table = pinned


class Reading:
    """Two threads that read, each in its own way."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.over = threading.Event()
        self.reads = {"catalog": 0, "versions": 0}
        self.seen: dict[str, set[int]] = {"catalog": set(), "versions": set()}
        self.faults: list[str] = []

    def run(self) -> None:
        looks = {"catalog": self._catalog, "versions": self._versions}
        threads = [threading.Thread(target=self._look, args=each) for each in looks.items()]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self.over.set()
        for thread in threads:
            thread.join()
        told = {"reads": self.reads, "faults": self.faults}
        print(json.dumps({**told, "seen": {k: sorted(v) for k, v in self.seen.items()}}))

    def _look(self, way: str, look: Callable[[], tuple[int, list[str]] | None]) -> None:
        last = 0
        while not self.over.is_set():
            try:
                read = look()
            except Exception as error:
                self.faults.append(f"{way}: {type(error).__name__}: {str(error)[:500]}")
            else:
                if read is None and last:
                    self.faults.append(f"{way}: no release any more, after {last}")
                if read is not None:
                    number, faults = read
                    self.reads[way] += 1
                    self.seen[way].add(number)
                    self.faults += [f"{way}, release {number}: {fault}" for fault in faults]
                    if number < last:
                        self.faults.append(f"{way}: release {number} after {last}")
                    last = number
            time.sleep(_PAUSE)

    def _catalog(self) -> tuple[int, list[str]] | None:
        file = Path(self.lake.root) / catalog.FILE
        if not file.exists():
            return None
        with duckdb.connect(str(file), read_only=True) as connection:
            number = connection.execute("select number from tarn.catalog").fetchone()
            pins = connection.execute(
                "select schema_name || '.' || table_name, row_count from tarn.release"
            ).fetchall()
            assert number is not None
            return number[0], wrong(connection, dict(pins))

    def _versions(self) -> tuple[int, list[str]] | None:
        release = releases.current(self.lake)
        if release is None:
            return None
        with shown(self.lake, release) as connection:
            rows = {name: pin.rows for name, pin in release.tables.items()}
            return release.number, wrong(connection, rows)


if __name__ == "__main__":
    Reading(Lake(sys.argv[1])).run()
