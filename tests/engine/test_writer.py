"""The Delta writer keeps values, refuses what does not fit, and leaves no half-made commits."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from threading import Thread
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tarn.errors import TarnError
from tarn.storage.lake import Lake
from tarn.storage.writer import Mode, write
from tests.engine.conftest import polars_options

pytestmark = pytest.mark.everywhere

NAME = "marts.orders"


def orders(*ids: int, **columns: Any) -> pa.Table:
    values = {name: [value] * len(ids) for name, value in columns.items()}
    return pa.table({"order_id": pa.array(ids, pa.int64()), **values})


def rows(lake: Lake) -> list[dict[str, Any]]:
    """What a second engine reads."""
    return (
        pl.read_delta(lake.uri(NAME), storage_options=polars_options(lake))
        .sort("order_id")
        .to_dicts()
    )


def version(lake: Lake) -> int:
    table = lake.table(NAME)
    assert table is not None
    return table.version()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("append", [(1, "old"), (2, "new"), (2, "old"), (3, "new")]),
        ("replace", [(2, "new"), (3, "new")]),
        ("replace_where", [(1, "old"), (2, "new"), (3, "new")]),
        ("merge", [(1, "old"), (2, "new"), (3, "new")]),
        ("insert", [(1, "old"), (2, "old"), (3, "new")]),
    ],
)
def test_each_mode_changes_exactly_the_rows_it_names(
    lake: Lake, mode: Mode, expected: list[tuple[int, str]]
) -> None:
    write(lake, NAME, orders(1, 2, state="old"), mode="append")
    written = write(
        lake, NAME, orders(2, 3, state="new"), mode=mode, keys=["order_id"], where="order_id > 1"
    )
    assert written.version == version(lake) == 1
    assert sorted((row["order_id"], row["state"]) for row in rows(lake)) == expected


def test_a_double_is_never_cut_to_a_whole_number(lake: Lake) -> None:
    write(lake, NAME, orders(1, amount=2), mode="append")
    with pytest.raises(TarnError, match="amount would change from int64 to double"):
        write(lake, NAME, orders(2, amount=1.7), mode="append")
    assert version(lake) == 0


def test_narrower_types_are_widened_to_the_tables(lake: Lake) -> None:
    price = pa.array([Decimal("1.50")], pa.decimal128(18, 2))
    write(lake, NAME, orders(1).append_column("price", price), mode="append")
    narrow = pa.table(
        {"order_id": pa.array([2], pa.int16()), "price": pa.array(["2"]).cast(pa.decimal128(5, 1))}
    )
    write(lake, NAME, narrow, mode="append")
    assert rows(lake)[1] == {"order_id": 2, "price": Decimal("2.00")}


def test_a_new_column_is_refused_unless_the_table_may_evolve(lake: Lake) -> None:
    write(lake, NAME, orders(1), mode="append")
    with pytest.raises(TarnError, match="not in the table"):
        write(lake, NAME, orders(2, note="hi"), mode="append")
    write(lake, NAME, orders(2, note="hi"), mode="append", evolve=True)
    assert rows(lake) == [{"order_id": 1, "note": None}, {"order_id": 2, "note": "hi"}]


def test_types_that_delta_lacks_are_refused_by_name(lake: Lake) -> None:
    with pytest.raises(TarnError, match="column opens has type time64"):
        write(lake, NAME, orders(1, opens=time(8)), mode="append")
    assert lake.table(NAME) is None


def test_times_keep_their_meaning(lake: Lake) -> None:
    naive, aware = datetime(2020, 3, 29, 2, 30), datetime(2020, 3, 29, 2, 30, tzinfo=UTC)
    write(lake, NAME, orders(1, naive=naive, aware=aware, day=date(2020, 3, 29)), mode="append")
    assert rows(lake) == [{"order_id": 1, "naive": naive, "aware": aware, "day": naive.date()}]


def test_a_source_that_dies_midway_leaves_no_commit_and_its_own_error(lake: Lake) -> None:
    def dying() -> pa.RecordBatchReader:
        def batches() -> Iterator[pa.RecordBatch]:
            yield from orders(2, 3).to_batches()
            raise ConnectionError("the till hung up")

        return pa.RecordBatchReader.from_batches(orders().schema, batches())

    write(lake, NAME, orders(1), mode="append")
    for mode in ("append", "replace", "merge"):
        with pytest.raises(ConnectionError, match="the till hung up"):
            write(lake, NAME, dying, mode=mode, keys=["order_id"])
    assert version(lake) == 0


def test_nothing_to_append_makes_no_version(lake: Lake) -> None:
    write(lake, NAME, orders(1), mode="append")
    for mode in ("append", "merge", "insert"):
        written = write(lake, NAME, orders(), mode=mode, keys=["order_id"])
        assert (written.version, written.rows) == (0, 0)
    assert version(lake) == 0


def test_replacing_some_rows_by_none_deletes_them(lake: Lake) -> None:
    write(lake, NAME, orders(1, 2, 3), mode="append")
    write(lake, NAME, orders(), mode="replace_where", where="order_id >= 2")
    assert rows(lake) == [{"order_id": 1}]


def test_dictionary_encoded_text_is_text(lake: Lake) -> None:
    encoded = orders(1, 2).append_column("file", pa.array(["a", "a"]).dictionary_encode())
    for mode in ("append", "append", "replace"):
        write(lake, NAME, encoded, mode=mode)
    assert rows(lake) == [{"order_id": 1, "file": "a"}, {"order_id": 2, "file": "a"}]


def test_declared_not_null_holds(lake: Lake) -> None:
    nothing = pa.table({"order_id": pa.array([1, None], pa.int64())})
    with pytest.raises(TarnError, match="null in column order_id"):
        write(lake, NAME, nothing, mode="append", not_null=["order_id"])
    assert lake.table(NAME) is None


@pytest.mark.parametrize(
    ("ids", "message"), [([1, 1], "1 rows repeat a key"), ([1, None], "null in key column")]
)
def test_a_merge_needs_one_row_per_key(lake: Lake, ids: list[int], message: str) -> None:
    write(lake, NAME, orders(1), mode="append")
    with pytest.raises(TarnError, match=message):
        write(lake, NAME, orders(*ids), mode="merge", keys=["order_id"])


def test_merges_that_collide_all_arrive(lake: Lake) -> None:
    write(lake, NAME, orders(*range(4), hits=0), mode="append")
    failures: list[BaseException] = []

    def merge(order: int) -> None:
        try:
            write(lake, NAME, orders(order, hits=1), mode="merge", keys=["order_id"])
        except BaseException as failure:
            failures.append(failure)

    threads = [Thread(target=merge, args=[order]) for order in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [row["hits"] for row in rows(lake)] == [1, 1, 1, 1]


def test_history_tells_who_wrote_and_how_far_an_application_came(lake: Lake) -> None:
    write(
        lake,
        NAME,
        orders(1),
        mode="append",
        comments={"order_id": "number on the receipt"},
        properties={"tarn.model": "orders"},
        transaction=("stream/0", 41),
    )
    table = lake.table(NAME)
    assert table is not None
    assert table.history(1)[0]["tarn.model"] == "orders"
    assert table.transaction_version("stream/0") == 41
    assert table.schema().fields[0].metadata == {"comment": "number on the receipt"}


@pytest.mark.parametrize("name", ["orders", "../orders", "marts.", "marts./x", "a.b.c", "_tarn.x"])
def test_a_name_cannot_leave_the_lake(lake: Lake, name: str) -> None:
    with pytest.raises(TarnError, match="is not a table name"):
        write(lake, name, orders(1), mode="append")
