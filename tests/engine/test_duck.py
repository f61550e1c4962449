"""DuckDB as a reader of the lake."""

import duckdb
import pytest

from tarn.storage.duck import stream

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
