"""DuckDB as a reader of the lake."""

import duckdb
import pyarrow as pa
import pytest

from tarn.storage.duck import identifier, prepare, quoted, select_from, stream
from tarn.storage.lake import Lake
from tarn.storage.writer import write

NUMBERS = "select i as n from range(2_000_000) as r(i)"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "sql",
    [
        "select a.n from numbers a join numbers b using (n)"
        " union all select a.n from numbers a join numbers c using (n)",
        "with x as (select n, n % 2 as odd from numbers) select * from x full join x y using (n)",
        "select n, row_number() over (partition by n % 7 order by n) as i from numbers",
    ],
)
def test_a_streamed_query_ends_and_gives_every_row(sql: str) -> None:
    with duckdb.connect() as connection:
        connection.execute("set threads = 2; set memory_limit = '1GB'")
        connection.execute(f"create table numbers as {NUMBERS}")
        expected = connection.execute(f"select count(*) from ({sql})").fetchall()
        assert [(sum(batch.num_rows for batch in stream(connection, sql, 122_880)),)] == expected


@pytest.mark.parametrize(
    ("partition_by", "reader"),
    [([], "read_parquet"), (["n"], "read_parquet"), (["s"], "delta_scan")],
)
def test_only_files_that_hold_the_rows_as_they_are_are_listed(
    lake: Lake, partition_by: list[str], reader: str
) -> None:
    rows = pa.table({"n": pa.array([1, None], pa.int64()), "s": ["a", "b"], "x": [1.5, 2.5]})
    write(lake, "raw.t", rows, mode="append", partition_by=partition_by)
    table = lake.table("raw.t")
    assert table is not None
    assert f"from {reader}(" in select_from(table)


def test_the_clock_of_every_cursor_is_utc(lake: Lake) -> None:
    with duckdb.connect() as connection:
        connection.execute("set global TimeZone = 'Asia/Tokyo'")
        prepare(connection, lake)
        for each in (connection, connection.cursor()):
            assert each.execute("select current_setting('TimeZone')").fetchall() == [("UTC",)]


def test_a_name_is_quoted_whole_or_by_its_parts() -> None:
    assert identifier('raw.a"b') == '"raw"."a""b"'
    assert quoted('a.b"c') == '"a.b""c"'
