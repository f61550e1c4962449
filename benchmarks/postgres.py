"""PostgreSQL into Delta: a first load beside the server's own COPY, new rows, and nothing new."""

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psycopg

from benchmarks.harness import TARN, Contender, compare, in_project, project
from tests.engine.postgres import database, postgres_server

MILLIONS = 14.7
COLUMNS = """
    basket_id bigint not null, line_number bigint not null, product_id bigint not null,
    household_id bigint not null, quantity bigint not null, sales_value numeric(12, 2) not null,
    retail_disc numeric(12, 2) not null, coupon_disc numeric(12, 2) not null,
    coupon_match_disc numeric(12, 2) not null, sold_at timestamp not null,
    updated_at timestamp not null
"""


def lines(address: str, table: str, first: int, rows: int) -> None:
    """Receipt lines, nine a receipt, a receipt every other second."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"create table if not exists {table} ({COLUMNS})")
        connection.execute(f"""
            insert into {table}
            select 30000000000 + i / 9, i % 9 + 1, 800000 + (i * 7919) % 92331, i / 9 % 2469,
                1 + i % 4, (i * 31) % 2500 / 100.0, (i * 17) % 300 / 100.0,
                case when i % 50 = 0 then 1 else 0 end, 0, at, at + interval '1 hour'
            from generate_series({first}::bigint, {first + rows - 1}) as i,
                lateral (select timestamp '2017-01-01' + i / 9 * interval '2 seconds' as at) as a
        """)
        if first == 0:
            connection.execute(f"alter table {table} add primary key (basket_id, line_number)")
            connection.execute(f"create index on {table} (updated_at)")
        connection.execute(f"vacuum analyze {table}")


def declared(name: str, address: str, include: Sequence[str]) -> Path:
    """A project that loads tables of a database."""
    more = f"kind: sql_database\nconnection: {address}\ninclude: [{', '.join(include)}]"
    return project(f"postgres_{name}", "tills", more)


def ingest(name: str, folder: Path) -> Contender:
    return Contender(name, [*TARN, "ingest"], cwd=folder, environment=in_project(folder))


def first_load(address: str, millions: float) -> None:
    folder = declared("first", address, ["lines"])
    copy = ["psql", "-q", address, "-c", "copy lines to stdout (format binary)", "-o", "/dev/null"]
    tarn = ingest("tarn ingest", folder)
    tarn.before = lambda: shutil.rmtree(folder / "lake", ignore_errors=True)
    title = f"{millions} million rows of 11 columns, whole process"
    compare(title, [Contender("COPY … (FORMAT binary) > /dev/null", copy), tarn], rounds=3)


def new_rows(small: str, large: str) -> None:
    """10,000 rows more each time, into both."""
    contenders = []
    for size, address in (("1.5", small), ("15", large)):
        folder = declared(f"new_{size}", address, ["lines"])
        one = ingest(f"into {size} million rows", folder)
        one.run()
        one.seconds.clear()
        one.peaks.clear()
        one.before = partial(more, address)
        contenders.append(one)
    compare("10,000 new rows by cursor, whole process", contenders)


def more(address: str) -> None:
    with psycopg.connect(address) as connection:
        row = connection.execute("select count(*) from lines").fetchone()
    assert row is not None
    lines(address, "lines", row[0], 10_000)


def nothing_new(address: str) -> None:
    """Ten tables of 100,000 rows, beside starting the program alone."""
    for i in range(10):
        lines(address, f"lines_{i}", 0, 100_000)
    folder = declared("nothing", address, ["lines_*"])
    start = Contender("start-up: tarn ingest --help", [*TARN, "ingest", "--help"], cwd=folder)
    ten = ingest("ten tables, nothing new", folder)
    ten.run()
    ten.seconds.clear()
    ten.peaks.clear()
    compare("A run without news, whole process", [start, ten])


def main(millions: float) -> None:
    """All three in one private server."""
    with postgres_server() as server:
        large, small, many = (database(server, name) for name in ("large", "small", "many"))
        lines(large, "lines", 0, int(millions * 1e6))
        first_load(large, millions)
        lines(small, "lines", 0, int(millions * 1e5))
        new_rows(small, large)
        nothing_new(many)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else MILLIONS)
