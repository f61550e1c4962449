"""A release is a set of versions that agree; the catalog shows exactly one."""

import subprocess

import duckdb
import pyarrow as pa
import pytest

from tarn.errors import TarnError
from tarn.storage import catalog, releases
from tarn.storage.duck import prepare
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin, Release
from tarn.storage.writer import write
from tests.engine.conftest import BIN

pytestmark = pytest.mark.everywhere


def publish(lake: Lake, after: Release | None, **tables: pa.Table) -> Release:
    for name, rows in tables.items():
        write(lake, f"marts.{name}", rows, mode="replace")
    pins = {name: Pin.of(table) for name in lake.names() if (table := lake.table(name))}
    return releases.publish(lake, pins, after, made_by={"test": "yes"})


def days(*numbers: int) -> pa.Table:
    return pa.table({"day": pa.array(numbers, pa.int64())})


def seen(lake: Lake, sql: str) -> list[tuple[object, ...]]:
    """What any DuckDB client sees; on disk even one that never loaded an extension."""
    with duckdb.connect(str(catalog.path(lake)), read_only=True) as connection:
        connection.execute("set autoinstall_known_extensions = false")
        connection.execute("set autoload_known_extensions = false")
        if lake.service:
            prepare(connection, lake)
        return connection.execute(sql).fetchall()


def test_the_catalog_stays_at_its_release_while_tables_change(lake: Lake) -> None:
    catalog.build(lake, publish(lake, None, sales=days(1, 2)))
    write(lake, "marts.sales", days(3), mode="append")
    assert seen(lake, "select sum(day) from marts.sales") == [(3,)]
    assert seen(lake, "select number from tarn.catalog") == [(1,)]


def test_one_of_two_builds_that_began_together_is_refused(lake: Lake) -> None:
    first = publish(lake, None, sales=days(1))
    publish(lake, first, sales=days(1, 2))
    with pytest.raises(TarnError, match="release 2 was published by somebody else"):
        publish(lake, first, sales=days(1, 2, 3))
    assert releases.numbers(lake) == [1, 2]


def test_nothing_changed_is_no_release(lake: Lake) -> None:
    first = publish(lake, None, sales=days(1))
    assert publish(lake, first) is first


def test_rollback_is_itself_rolled_back(lake: Lake) -> None:
    first = publish(lake, None, sales=days(1))
    second = publish(lake, first, sales=days(2), stores=days(7))
    assert releases.rollback(lake).tables == first.tables
    assert releases.rollback(lake).tables == second.tables
    assert releases.rollback(lake, 1).tables == first.tables
    catalog.build(lake, releases.read(lake, 5))
    assert seen(lake, "select day from marts.sales") == [(1,)]


def test_diff_names_what_changed(lake: Lake) -> None:
    first = publish(lake, None, sales=days(1), stores=days(1), gone=days(1))
    wider = days(1).append_column("note", pa.array(["x"]))
    write(lake, "marts.sales", days(1, 2), mode="replace")
    second = publish(lake, first, stores=wider, new=days(1))
    kept = {name: pin for name, pin in second.tables.items() if name != "marts.gone"}
    third = releases.publish(lake, kept, second, {})
    assert {change.name: change.kind for change in releases.diff(first, third)} == {
        "marts.gone": "removed",
        "marts.new": "added",
        "marts.sales": "rows",
        "marts.stores": "columns",
    }


def test_a_release_that_is_not_kept_is_named(lake: Lake) -> None:
    publish(lake, None, sales=days(1))
    with pytest.raises(TarnError, match="no release 9") as failure:
        releases.read(lake, 9)
    assert "kept are 1 to 1" in str(failure.value)


@pytest.mark.parametrize("partition_by", [[], ["day"], ["label"]])
def test_views_give_the_same_rows_whatever_the_layout(lake: Lake, partition_by: list[str]) -> None:
    rows = pa.table({"day": [1, 2, None], "label": ["a b", "c/d", None], "value": [1.5, 2.5, 3.5]})
    write(lake, "marts.odd", rows, mode="append", partition_by=partition_by)
    late = rows.slice(0, 1).append_column("late", pa.array(["yes"]))
    write(lake, "marts.odd", late, mode="append", evolve=True)
    catalog.build(lake, publish(lake, None))
    with duckdb.connect(str(catalog.path(lake)), read_only=True) as connection:
        prepare(connection, lake)
        ordered = "select day, label, value, late from marts.odd order by value, late"
        found = connection.execute(ordered).fetchall()
    expected = [(1, "a b", 1.5, "yes"), (1, "a b", 1.5, None), (2, "c/d", 2.5, None)]
    assert found == [*expected, (None, None, 3.5, None)]


@pytest.mark.on_disk
def test_the_command_line_of_duckdb_opens_the_catalog_while_another_reader_has_it(
    lake: Lake,
) -> None:
    file = catalog.build(lake, publish(lake, None, sales=days(1, 2)))
    with duckdb.connect(str(file), read_only=True):
        sql = "select sum(day) from marts.sales"
        command = [str(BIN / "duckdb"), "-readonly", "-csv", "-noheader", str(file), sql]
        assert subprocess.check_output(command, text=True).strip() == "3"
