"""A merge gives what merging means, whichever plan it chooses, and chooses the one it should."""

import random
import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tarn.storage import writer
from tarn.storage.lake import Lake
from tarn.storage.merging import Merge
from tarn.storage.predicates import any_of
from tarn.storage.writer import Mode, write

NAME = "marts.orders"
SCHEMA = pa.schema([("id", pa.int64()), ("day", pa.string()), ("state", pa.string())])
Row = dict[str, Any]
_MODES: list[Mode] = ["merge", "merge", "insert"]


def orders(ids: Sequence[int], state: str, day: str | None = None) -> pa.Table:
    days = [day or f"d{number // 10}" for number in ids]
    return pa.table([ids, days, [state] * len(ids)], schema=SCHEMA)


def rows(lake: Lake) -> list[Row]:
    return pl.read_delta(lake.uri(NAME)).sort("id").to_dicts()


def version(lake: Lake) -> int:
    table = lake.table(NAME)
    assert table is not None
    return table.version()


def planned(lake: Lake, source: pa.Table, *, updates: bool = True) -> str:
    table = lake.table(NAME)
    assert table is not None
    return Merge(lake, table, source, ["id"], updates).plan().kind


@pytest.mark.parametrize(
    ("source", "mode", "plan"),
    [
        (orders(range(100, 110), "new"), "merge", "append"),  # beyond every file's range
        (orders([15, 105], "new"), "insert", "append"),  # an anti-join leaves one
        (orders([15, 16], "old"), "merge", "nothing"),  # read again and unchanged
        (orders([15, 105], "old"), "merge", "append"),  # only one is new
        (orders(range(10, 20), "new"), "merge", "replace"),  # all of a partition
        (orders(range(12, 19), "new"), "merge", "rewrite"),  # the only file of a partition
        (orders([5, 6], "new", "d9"), "merge", "rewrite"),  # rows that move to another one
    ],
)
def test_the_cheapest_correct_plan_is_chosen(
    lake: Lake, source: pa.Table, mode: Mode, plan: str
) -> None:
    write(lake, NAME, orders(range(100), "old"), mode="append", partition_by=["day"])
    assert planned(lake, source, updates=mode == "merge") == plan
    write(lake, NAME, source, mode=mode, keys=["id"])
    kept = {row["id"]: row for row in orders(range(100), "old").to_pylist()}
    for row in source.to_pylist():
        if mode == "merge" or row["id"] not in kept:
            kept[row["id"]] = row
    assert rows(lake) == sorted(kept.values(), key=lambda row: row["id"])


def test_few_rows_of_many_files_are_merged(lake: Lake) -> None:
    for start in range(0, 50, 10):
        write(lake, NAME, orders(range(start, start + 10), "old"), mode="append")
    assert planned(lake, orders([11], "new")) == "merge"
    assert planned(lake, orders([1, 11, 21, 31], "new")) == "rewrite"
    write(lake, NAME, orders([11], "new"), mode="merge", keys=["id"])
    table = lake.table(NAME)
    assert table is not None
    assert table.history(1)[0]["operationMetrics"]["num_target_files_removed"] == 1


@pytest.mark.parametrize("partition_by", [[], ["day"]])
@pytest.mark.parametrize("seed", range(6))
def test_merges_updates_and_deletions_mean_what_a_dictionary_means(
    lake: Lake, partition_by: list[str], seed: int
) -> None:
    chance = random.Random(seed)
    kept: dict[int, Row] = {}
    for step in range(8):
        mode = chance.choice(_MODES)
        ids = chance.sample(range(60), chance.choice([1, 3, 20]))
        source = orders(ids, f"s{chance.randrange(3)}")
        gone = [mode == "merge" and chance.random() < 0.3 for _ in ids]
        for row, is_gone in zip(source.to_pylist(), gone, strict=True):
            if is_gone:
                kept.pop(row["id"], None)
            elif mode == "merge" or row["id"] not in kept:
                kept[row["id"]] = row
        marked = source.append_column("gone", pa.array(gone))
        write(lake, NAME, marked, mode=mode, keys=["id"], partition_by=partition_by, deleted="gone")
        assert rows(lake) == sorted(kept.values(), key=lambda row: row["id"]), step


def test_a_column_may_come_with_a_merge_and_others_keep_theirs(lake: Lake) -> None:
    write(lake, NAME, orders(range(10), "old"), mode="append")
    noted = orders([1, 11], "new").append_column("note", pa.array(["x", "y"]))
    write(lake, NAME, noted.drop_columns(["day"]), mode="merge", keys=["id"], evolve=True)
    assert rows(lake)[1] == {"id": 1, "day": "d0", "state": "new", "note": "x"}
    assert rows(lake)[-1] == {"id": 11, "day": None, "state": "new", "note": "y"}
    assert rows(lake)[2]["note"] is None


def test_two_writers_never_insert_one_key_twice(lake: Lake) -> None:
    write(lake, NAME, orders([0], "old"), mode="append")
    start = threading.Barrier(4)

    def insert(name: str) -> None:
        start.wait()
        for first in range(1, 31, 10):
            source = orders(range(first, first + 10), name)
            write(lake, NAME, source, mode="insert", keys=["id"])

    threads = [threading.Thread(target=insert, args=[f"writer {i}"]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["id"] for row in rows(lake)] == list(range(31))


def test_a_merge_that_hangs_is_done_without_merging(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 50_000, 10_000):
        write(lake, NAME, orders(range(start, start + 10_000), "old"), mode="append")
    monkeypatch.setattr(writer, "MERGE_SECONDS", 0)
    write(lake, NAME, orders([11], "new"), mode="merge", keys=["id"])
    for thread in threading.enumerate():
        if thread.name == "merge":
            thread.join()
    assert version(lake) == 5
    assert [row["id"] for row in rows(lake)] == list(range(50_000))
    assert rows(lake)[11]["state"] == "new"


@pytest.mark.parametrize(
    "key",
    [
        pa.array([date(2020, 1, 2), date(2020, 3, 29)]),
        pa.array([datetime(2020, 1, 2, 3, 4, 5, 6), datetime(2020, 3, 29, 2, 30)]),
        pa.array([datetime(2020, 1, 2, tzinfo=UTC), datetime(2020, 3, 29, 1, tzinfo=UTC)]),
        pa.array([Decimal("1.50"), Decimal("2.25")]),
        pa.array([True, False]),
        pa.array(["it's", 'say "a"']),
    ],
    ids=lambda key: str(key.type),
)
@pytest.mark.parametrize("partition_by", [[], ["key"]])
def test_keys_and_partitions_of_every_type(
    lake: Lake, key: pa.Array, partition_by: list[str]
) -> None:
    both = pa.table({"key": key, "state": ["old", "old"]})
    for _ in range(3):
        write(lake, NAME, both.slice(0, 0), mode="append", partition_by=partition_by)
    write(lake, NAME, both, mode="append")
    changed = pa.table({"key": key[:1], "state": ["new"]})
    write(lake, NAME, changed, mode="merge", keys=["key"])
    where = any_of(["key"], [(key[1].as_py(),)])
    replacing = pa.table({"key": key[1:], "state": ["put in place"]})
    write(lake, NAME, replacing, mode="replace_where", where=where)
    found = pl.read_delta(lake.uri(NAME)).to_dicts()
    assert {row["key"]: row["state"] for row in found} == {
        key[0].as_py(): "new",
        key[1].as_py(): "put in place",
    }
