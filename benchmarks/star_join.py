"""Star joins through the catalog, on native DuckDB tables and on plain Parquet files."""

import json
import statistics
import subprocess
import time
from pathlib import Path

import duckdb

from benchmarks.demo_lake import project
from benchmarks.harness import CONSOLE, RUN, beside
from tarn.storage.duck import identifier

ROUNDS = 9
TABLES = ("fct_sales", "fct_promotions", "dim_product", "dim_store", "dim_date", "dim_household")
QUERIES = {
    "sales by department and month": """
        select p.department, d.month, sum(s.sales_amount)
        from marts.fct_sales as s
        join marts.dim_product as p using (product_key)
        join marts.dim_date as d on s.sold_date = d.date_day
        group by all""",
    "one store's products in one month": """
        select p.product_category, sum(s.sales_amount)
        from marts.fct_sales as s
        join marts.dim_product as p using (product_key)
        join marts.dim_store as t using (store_key)
        where t.store_id = 367 and s.sold_date between date '2017-03-01' and date '2017-03-31'
        group by all""",
    "households by what they buy": """
        select h.household_id, count(distinct p.department), sum(s.sales_amount)
        from marts.fct_sales as s
        join marts.dim_product as p using (product_key)
        join marts.dim_household as h using (household_key)
        group by all order by 3 desc limit 100""",
    "promotions on display by department": """
        select p.department, f.retail_week, count(*)
        from marts.fct_promotions as f
        join marts.dim_product as p using (product_key)
        where f.is_on_display
        group by all""",
}


def connections(folder: Path) -> dict[str, duckdb.DuckDBPyConnection]:
    """The same tables three times."""
    catalog = duckdb.connect(str(folder / "lake" / "catalog.duckdb"), read_only=True)
    parquet, native = duckdb.connect(), duckdb.connect(str(RUN / "native.duckdb"))
    plain = RUN / "plain_parquet"
    plain.mkdir(parents=True, exist_ok=True)
    for connection in (parquet, native):
        connection.execute("create schema if not exists marts")
    for table in TABLES:
        file = plain / f"{table}.parquet"
        if not file.exists():
            catalog.execute(f"copy marts.{identifier(table)} to '{file}' (compression zstd)")
        parquet.execute(f"create view marts.{table} as from read_parquet('{file}')")
        native.execute(f"create or replace table marts.{table} as from read_parquet('{file}')")
    for connection in (catalog, parquet, native):
        connection.execute("set threads = 2")
    return {"plain Parquet": parquet, "catalog": catalog, "native": native}


def main() -> None:
    """Each query in turns, medians, ratios to plain Parquet."""
    folder = project()
    if not (folder / "lake" / "catalog.duckdb").exists():
        subprocess.run([beside("dbt"), "--quiet", "build"], cwd=folder, check=True)
    contenders = connections(folder)
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for title, sql in QUERIES.items():
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        answers = {
            name: sorted(c.execute(sql).fetchall(), key=str) for name, c in contenders.items()
        }
        assert len({json.dumps(answer, default=str) for answer in answers.values()}) == 1, title
        for _ in range(ROUNDS):
            for name, connection in contenders.items():
                started = time.perf_counter()
                connection.execute(sql).fetchall()
                seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        base = medians["plain Parquet"]
        for name, median in medians.items():
            ratios[name].append(median / base)
        told = ", ".join(f"{n} {m * 1000:.0f} ms ({m / base:.2f})" for n, m in medians.items())
        CONSOLE.print(f"{title}: {told}")
    for name, found in ratios.items():
        CONSOLE.print(f"{name}: median ratio to plain Parquet {statistics.median(found):.2f}")


if __name__ == "__main__":
    main()
