"""Ingestion against real sources: databases, files, an API, a share. First run, second run, change,
drift, dirt, failure, and a process killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from io import StringIO
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from rich.console import Console

from tarn.errors import TarnError
from tarn.ingestion.engine import ingest
from tarn.ingestion.types import exact_cast
from tarn.settings import settings
from tests.engine.ingesting import Project, Row, api, counts_of, project
from tests.engine.postgres import PASSWORD, database, postgres
from tests.engine.upstreams import TOKEN, Api, serving, sharing

__all__ = ["api", "postgres", "project"]


NUMBERS = """
    create table numbers (value int);
    with recursive n(value) as (select 1 union all select value + 1 from n where value < 50000)
    insert into numbers select value from n;
"""
ORDERS = """
    create table orders (order_id bigint primary key, amount decimal(10,2), paid boolean,
        ordered_on date, note text, updated_at timestamp not null);
    insert into orders values
        (1, 10.10, 1, '2017-01-01', 'ä', '2017-01-01 10:00:00'),
        (2, 20, 0, null, null, '2017-01-02 10:00:00');
"""
MERGED = "  orders: {primary_key: [order_id], cursor: updated_at, write: merge}"
SHOP = "sqlite:///shop.db"


def _ids(project: Project, table: str = "raw_shop.orders") -> list[Any]:
    return [row["order_id"] for row in project.rows(table, order="order_id")]


def test_a_database_lands_with_its_types_and_a_second_run_moves_nothing(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, MERGED)
    first = project.load()["orders"]
    assert (first.status, counts_of(first)) == ("loaded", (2, 2, 0, 0))
    assert project.rows("raw_shop.orders")[0] == {
        "order_id": 1,
        "amount": Decimal("10.10"),
        "paid": True,
        "ordered_on": date(2017, 1, 1),
        "note": "ä",
        "updated_at": datetime(2017, 1, 1, 10),
    }
    assert list(project.types("raw_shop.orders"))[-2:] == ["_load_id", "_loaded_at"]
    before = project.versions()
    second = project.load()["orders"]
    # The row with the highest cursor is read again, as another may have got the same cursor.
    assert (second.status, counts_of(second)) == ("unchanged", (1, 0, 0, 1))
    assert project.versions() == before


def test_changed_and_new_rows_are_merged(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, MERGED)
    project.load()
    project.sql(
        "update orders set amount = 11, updated_at = '2017-01-03 10:00:00' where order_id = 1;"
        "insert into orders values (3, 30.30, 1, null, null, '2017-01-02 10:00:00');"
    )
    second = project.load()["orders"]
    # Order 3 has the cursor that was highest before, which strictly-after would have missed.
    assert counts_of(second) == (3, 2, 0, 1)
    amounts = [row["amount"] for row in project.rows("raw_shop.orders", order="order_id")]
    assert amounts == [Decimal("11.00"), Decimal("20.00"), Decimal("30.30")]


def test_rows_without_key_or_cursor_are_told_apart_by_content(project: Project) -> None:
    project.sql("create table clicks (page text, at timestamp);")
    project.sql("insert into clicks values ('a', '2017-01-01'), ('a', '2017-01-01'), ('b', null);")
    tables = "  clicks: {cursor: at, write: append}\n  all_clicks: {table: clicks, write: append}"
    project.declare("shop", "sql_database", SHOP, tables)
    project.load()
    project.sql("insert into clicks values ('a', '2017-01-01'), ('c', '2017-01-02'), ('b', null);")
    for table in ("clicks", "all_clicks"):
        assert counts_of(project.load()[table])[1:] == (
            (3, 0, 3) if table == "clicks" else (0, 0, 6)
        )
        assert len(project.rows(f"raw_shop.{table}")) == 6
    before = project.versions()
    project.load()
    assert project.versions() == before


def test_replace_follows_deletions_but_not_into_an_empty_table(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, "  orders: {write: replace}")
    project.load()
    before = project.versions()
    assert project.load()["orders"].status == "unchanged"
    assert project.versions() == before
    project.sql("delete from orders where order_id = 1;")
    assert counts_of(project.load()["orders"]) == (1, 1, 0, 0)
    assert _ids(project) == [2]
    project.sql("delete from orders;")
    refused = project.load()["orders"]
    assert refused.status == "failed"
    assert "the source is empty, the table has 1 rows" in str(refused.error)
    assert "allow_empty" in str(refused.error)
    assert _ids(project) == [2]
    project.declare("shop", "sql_database", SHOP, "  orders: {write: replace, allow_empty: true}")
    project.load()
    assert _ids(project) == []


def test_an_empty_table_lands_with_its_columns(project: Project) -> None:
    project.sql("create table orders (order_id bigint primary key, updated_at timestamp);")
    project.declare("shop", "sql_database", SHOP, MERGED)
    assert counts_of(project.load()["orders"]) == (0, 0, 0, 0)
    assert project.types("raw_shop.orders")["updated_at"] == "timestamp[us]"
    project.sql("insert into orders values (1, '2017-01-01');")
    assert counts_of(project.load()["orders"]) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("columns", "status", "note"),
    [
        ("evolve", "loaded", "new column colour (text)"),
        ("discard", "loaded", "new column colour (text) left out"),
        ("freeze", "failed", "new column colour (text)"),
    ],
)
def test_a_new_column_follows_the_contract(
    project: Project, columns: str, status: str, note: str
) -> None:
    project.sql(ORDERS)
    contract = f"contract: {{columns: {columns}}}"
    project.declare("shop", "sql_database", SHOP, MERGED.replace("write", f"{contract}, write"))
    project.load()
    project.sql(
        "alter table orders add column colour text;"
        "update orders set colour = 'red', updated_at = '2017-02-01' where order_id = 2;"
    )
    load = project.load()["orders"]
    assert load.status == status
    assert note in (load.notes if status == "loaded" else str(load.error))
    if columns == "evolve":
        assert [row["colour"] for row in project.rows("raw_shop.orders")] == [None, "red"]
    else:
        assert "colour" not in project.types("raw_shop.orders")


def test_a_column_no_longer_delivered_is_reported_and_a_required_one_stops_the_load(
    project: Project,
) -> None:
    project.sql(ORDERS)
    required = MERGED.replace("write", "contract: {required: [amount]}, write")
    project.declare("shop", "sql_database", SHOP, required)
    project.load()
    project.sql("alter table orders drop column note; update orders set updated_at = '2018-01-01'")
    assert "column note is no longer delivered" in project.load()["orders"].notes
    assert project.rows("raw_shop.orders")[0]["note"] == "ä"
    project.sql("alter table orders rename column amount to amonut;")
    refused = project.load()["orders"]
    assert refused.status == "failed"
    expected = "column 'amount', declared under required, is not delivered; did you mean 'amonut'?"
    assert expected in str(refused.error)
    assert "ingestion/shop.yml:7" in str(refused.error)


def test_a_replaced_table_keeps_a_column_that_is_gone(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, "  orders: {write: replace}")
    project.load()
    project.sql("alter table orders drop column note;")
    assert project.load()["orders"].notes == ("column note is no longer delivered",)
    assert [row["note"] for row in project.rows("raw_shop.orders")] == [None, None]
    assert project.load()["orders"].status == "unchanged"


def _retyped(project: Project, kind: str, value: str) -> None:
    project.sql(
        f"drop table orders; create table orders (order_id bigint primary key, amount {kind},"
        f" updated_at timestamp); insert into orders values (9, {value}, '2018-01-01');"
    )


def test_a_changed_type_is_refused_and_the_next_good_load_goes_on(project: Project) -> None:
    project.declare("shop", "sql_database", SHOP, MERGED)
    project.sql("create table orders (x int);")
    _retyped(project, "decimal(10,2)", "1.25")
    project.load()
    before = project.versions()
    _retyped(project, "text", "'a lot'")
    refused = project.load()["orders"]
    assert refused.status == "failed"
    assert "changed column amount from decimal(10,2) to text" in str(refused.error)
    told = {"tarn.drift": 0, "tarn.loads": 0}
    assert {**project.versions(), **told} == {**before, **told}
    _retyped(project, "decimal(8,1)", "1.5")
    assert project.load()["orders"].status == "loaded"
    assert project.rows("raw_shop.orders")[0]["amount"] == Decimal("1.50")


def test_a_wider_type_is_taken_only_where_the_contract_says_so(project: Project) -> None:
    project.sql("create table orders (x int);")
    for types, status in (("freeze", "failed"), ("widen", "loaded")):
        contract = f"contract: {{types: {types}}}, partition_by: [order_id]"
        project.declare("shop", "sql_database", SHOP, MERGED.replace("write", f"{contract}, write"))
        _retyped(project, "decimal(10,2)", "1.25")
        project.load()
        _retyped(project, "decimal(18,4)", "1.2345")
        project.sql("insert into orders select 10, amount, updated_at from orders;")
        assert project.load()["orders"].status == status
    amounts = [row["amount"] for row in project.rows("raw_shop.orders", order="order_id")]
    assert amounts == [Decimal("1.2345"), Decimal("1.2345")]
    table = project.lake.table("raw_shop.orders")
    assert table is not None
    assert table.metadata().partition_columns == ["order_id"]


def test_rows_that_break_the_contract_go_to_quarantine_once(project: Project) -> None:
    project.sql(ORDERS)
    project.sql(
        "insert into orders values (3, -1, 1, null, 'x', '2017-01-03'),"
        " (4, null, 1, null, null, '2017-01-03'), (5, 5, 1, null, 'good', '2017-01-04');"
    )
    terms = "contract: {required: [amount]}, rules: [amount >= 0, \"note <> 'x'\"]"
    project.declare("shop", "sql_database", SHOP, MERGED.replace("write", f"{terms}, write"))
    assert counts_of(project.load()["orders"]) == (5, 3, 2, 0)
    quarantined = project.rows("quarantine_shop.orders", "_reason, _row", "_reason")
    assert [row["_reason"] for row in quarantined] == [
        "amount is null",
        "breaks the rule amount >= 0; breaks the rule note <> 'x'",
    ]
    assert json.loads(quarantined[1]["_row"])["order_id"] == 3
    project.sql("update orders set updated_at = '2017-01-04' where order_id = 3;")
    project.load()
    before = project.versions()
    assert project.load()["orders"].status == "unchanged"
    assert project.versions() == before
    loads = project.rows("tarn.loads", "rows_read, rows_accepted, rows_quarantined", "rows_read")
    assert {tuple(row.values()) for row in loads} == {(5, 3, 2), (2, 0, 1)}


def test_a_rule_that_is_no_sql_is_told_with_its_line(project: Project) -> None:
    project.sql(ORDERS)
    ruled = MERGED.replace("write", "rules: [amuont >= 0], write")
    project.declare("shop", "sql_database", SHOP, ruled)
    error = str(project.load()["orders"].error)
    assert "raw_shop.orders (ingestion/shop.yml:7): rule 'amuont >= 0'" in error
    assert "amount" in error


def test_sqlite_values_that_are_not_of_their_columns_type_are_quarantined(project: Project) -> None:
    project.sql("create table orders (order_id bigint primary key, amount decimal(5,2), n int);")
    values = [f"({i}, {i}.25, {i})" for i in range(3000)]
    bad = ["(4001, 'much', 1)", "(4002, 1, 'many')", "(4003, 0.125, 1)", "(4004, 123456, 1)"]
    project.sql(f"insert into orders values {', '.join(values + bad)};")
    merged = "  orders: {primary_key: [order_id], write: merge}"
    project.declare("shop", "sql_database", SHOP, merged)
    # From 1000 on the amounts have more digits than decimal(5,2).
    assert counts_of(project.load()["orders"]) == (3004, 1000, 2004, 0)
    reasons = {row["_reason"] for row in project.rows("quarantine_shop.orders", "_reason")}
    for reason in ("amount: 'much' is not decimal(5,2)", "n: 'many' is not bigint"):
        assert reason in reasons
    assert max(_ids(project)) == 999


def test_a_column_without_one_good_value_is_a_change_not_dirt(project: Project) -> None:
    project.sql(NUMBERS + "create table orders (order_id bigint primary key, amount int);")
    project.sql("insert into orders select value, 'x' from numbers where value <= 20;")
    project.declare("shop", "sql_database", SHOP, "  orders: {write: append}")
    refused = project.load()["orders"]
    assert "column amount has no value that is bigint" in str(refused.error)
    assert list(project.versions()) == ["tarn.drift", "tarn.loads"]
    project.declare(
        "shop", "sql_database", SHOP, "  orders: {write: append, columns: {amount: text}}"
    )
    assert counts_of(project.load()["orders"]) == (20, 20, 0, 0)


def test_another_database_is_read_through_sqlalchemy(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", "sqlite+pysqlite:///shop.db", MERGED)
    assert counts_of(project.load()["orders"]) == (2, 2, 0, 0)
    assert project.rows("raw_shop.orders")[0]["updated_at"] == datetime(2017, 1, 1, 10)
    project.sql("insert into orders values (3, 3, 1, null, null, '2017-01-02 10:00:00');")
    assert counts_of(project.load()["orders"]) == (2, 1, 0, 1)


EVERY_TYPE = """
    create type mood as enum ('calm', 'cross');
    create domain price as numeric(8, 3);
    create table "Order Lines" (
        "Line ID" bigint primary key, small smallint, exact numeric(12, 2), loose numeric,
        priced price, ratio double precision, name text, code char(3), ok boolean, day date,
        at timestamp, instant timestamptz not null, clock time, id uuid, doc jsonb, feeling mood,
        tags int[], bytes bytea, span interval, address inet);
    insert into "Order Lines" values
        (1, 2, 1.25, 3.14159, 1.125, 0.5, 'ä"''', 'ab', true, '2017-01-01',
         '2017-01-01 10:00:00.123456', '2017-01-01 10:00:00+02', '12:30',
         'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": [1]}', 'calm', '{1,2}', '\\x00ff',
         '1 day', '10.0.0.1'),
        (2, null, null, null, null, null, null, null, null, null, null, '2017-01-02 10:00:00+02',
         null, null, null, null, null, null, null, null);
"""


def test_postgresql_lands_every_type_and_loads_on_from_its_cursor(
    project: Project, postgres: str
) -> None:
    address = database(postgres, "types")
    with psycopg.connect(address) as connection:
        connection.execute(EVERY_TYPE)
    lines = '  lines: {table: "Order Lines", primary_key: [line_id], cursor: instant, write: merge}'
    project.declare("erp", "sql_database", address, lines)
    assert counts_of(project.load()["lines"]) == (2, 2, 0, 0)
    assert project.rows("raw_erp.lines", order="line_id")[0] == {
        "line_id": 1,
        "small": 2,
        "exact": Decimal("1.25"),
        "loose": Decimal("3.141590000"),
        "priced": Decimal("1.125"),
        "ratio": 0.5,
        "name": "ä\"'",
        "code": "ab ",
        "ok": True,
        "day": date(2017, 1, 1),
        "at": datetime(2017, 1, 1, 10, 0, 0, 123456),
        "instant": datetime(2017, 1, 1, 8),
        "clock": "12:30:00",
        "id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "doc": '{"a": [1]}',
        "feeling": "calm",
        "tags": [1, 2],
        "bytes": b"\x00\xff",
        "span": "1 day",
        "address": "10.0.0.1/32",
    }
    assert counts_of(project.load()["lines"]) == (1, 0, 0, 1)
    with psycopg.connect(address) as connection:
        connection.execute("""update "Order Lines" set small = 7, instant = now()""")
    assert counts_of(project.load()["lines"]) == (2, 2, 0, 0)


def test_one_declaration_lands_the_same_from_sqlite_and_postgresql(
    project: Project, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = database(postgres, "shop")
    project.sql(ORDERS)
    with psycopg.connect(address) as connection:
        connection.execute(ORDERS.replace(" 1, '", " true, '").replace(" 0, n", " false, n"))
    project.declare("shop", "sql_database", "${SHOP_URL:-sqlite:///shop.db}", MERGED)
    project.load()
    landed = project.rows("raw_shop.orders"), project.types("raw_shop.orders")
    monkeypatch.setenv("SHOP_URL", address)
    settings.cache_clear()
    load = project.load()["orders"]
    assert (load.status, counts_of(load)) == ("unchanged", (1, 0, 0, 1))
    assert (project.rows("raw_shop.orders"), project.types("raw_shop.orders")) == landed


DROP = "  sales: {path: 'sales/*', write: append, columns: {sold_on: date}}"


def test_files_land_as_text_and_a_changed_file_takes_the_place_of_its_rows(
    project: Project,
) -> None:
    project.file(
        "sales/a.csv", "Sale ID;sold_on;note\n1;2017-01-01;\n2;2017-01-02;x\n2;2017-01-02;x\n"
    )
    project.file("sales/b.csv", "Sale ID;sold_on;note\n3;2017-01-03;y\n")
    project.declare("drop", "files", "drop", DROP)
    assert counts_of(project.load()["sales"]) == (4, 4, 0, 0)
    assert project.rows("raw_drop.sales")[0] == {
        "sale_id": "1",
        "sold_on": date(2017, 1, 1),
        "note": None,
        "_source_file": "sales/a.csv",
    }
    before = project.versions()
    (project.path / "drop/sales/b.csv").touch()
    assert project.load()["sales"].status == "unchanged"
    assert project.versions() == before
    project.file("sales/a.csv", "Sale ID;sold_on;note\n1;2017-01-01;new\n")
    project.file("sales/c.csv", "Sale ID;sold_on;note;colour\n4;2017-01-04;;red\n")
    load = project.load()["sales"]
    assert (counts_of(load), load.notes) == ((2, 2, 0, 0), ("new column colour (text)",))
    landed = [
        (row["sale_id"], row["note"], row["colour"]) for row in project.rows("raw_drop.sales")
    ]
    assert landed == [("1", "new", None), ("3", "y", None), ("4", None, "red")]


def test_dirty_and_broken_csv_are_told_not_half_read(project: Project) -> None:
    project.file("sales/a.csv", "sale_id,sold_on\n1,2017-01-01\n2,yesterday\n3,2017-01-03 12:00\n")
    project.declare("drop", "files", "drop", DROP)
    assert counts_of(project.load()["sales"]) == (3, 1, 2, 0)
    reasons = [row["_reason"] for row in project.rows("quarantine_drop.sales", "_reason")]
    assert reasons == [
        "sold_on: '2017-01-03 12:00' is not date",
        "sold_on: 'yesterday' is not date",
    ]
    project.file("sales/b.csv", "sale_id,sold_on\n4,2017-01-04\n5,2017-01-05,surplus\n6\n")
    refused = project.load()["sales"]
    assert refused.status == "failed"
    assert "raw_drop.sales: sales/b.csv: " in str(refused.error)
    assert "the first on line 3: 3 fields, not 2" in str(refused.error)
    assert len(project.rows("raw_drop.sales")) == 1


def test_parquet_keeps_its_types_and_instants_become_utc(project: Project) -> None:
    folder = project.path / "drop/sales"
    folder.mkdir(parents=True)
    zoned = pa.array([datetime(2017, 1, 1, 12)], pa.timestamp("ns", "America/New_York"))
    pq.write_table(pa.table({"id": [1], "at": zoned, "n": pa.array([1], pa.int32())}), folder / "1")
    pq.write_table(pa.table({"id": [2], "n": pa.array([2**40])}), folder / "2")
    sales = "  sales: {path: 'sales/*', format: parquet, write: append}"
    project.declare("drop", "files", "drop", sales)
    project.load()
    assert project.types("raw_drop.sales") == {
        "id": "int64",
        "at": "timestamp[us]",
        "n": "int64",
        "_source_file": "string",
        "_load_id": "string",
        "_loaded_at": "timestamp[us]",
    }
    assert [row["at"] for row in project.rows("raw_drop.sales")] == [datetime(2017, 1, 1, 12), None]
    pq.write_table(pa.table({"id": ["three"]}), folder / "3")
    assert "changed column id from bigint to text" in str(project.load()["sales"].error)


def test_newer_files_win_for_the_same_key_and_json_children_follow_their_row(
    project: Project,
) -> None:
    project.file("1.json", '[{"id": 1, "tags": [{"t": "a"}, {"t": "b"}]}, {"id": 2, "price": 1}]')
    project.declare(
        "drop",
        "files",
        "drop",
        "  items: {path: '*.json*', primary_key: [id], write: merge, contract: {types: widen}}",
    )
    loads = project.load()
    assert counts_of(loads["items"]) == (2, 2, 0, 0)
    assert counts_of(loads["items__tags"]) == (2, 2, 0, 0)
    assert project.load()["items"].status == "unchanged"
    os.utime(project.path / "drop/1.json", (1, 1))
    project.file(
        "2.jsonl",
        '{"id": 1, "tags": [{"t": "c"}]}\n{"id": 2, "price": 1}\n{"id": 3, "price": 1.5}\n',
    )
    loads = project.load()
    assert counts_of(loads["items"]) == (3, 2, 0, 1)
    rows = project.rows("raw_drop.items", "id, price, _dlt_id", "id")
    assert [(row["id"], row["price"]) for row in rows] == [(1, None), (2, 1.0), (3, 1.5)]
    (tag,) = project.rows("raw_drop.items__tags", "t, _dlt_parent_id, _dlt_list_idx")
    assert tag == {"t": "c", "_dlt_parent_id": rows[0]["_dlt_id"], "_dlt_list_idx": 0}


def test_replaced_files_are_read_when_one_changes_comes_or_goes(project: Project) -> None:
    project.file("a.csv", "id\n1\n1\n")
    project.file("b.csv", "id\n2\n")
    project.declare(
        "drop", "files", "drop", "  ids: {path: '*.csv', write: replace, primary_key: [id]}"
    )
    assert counts_of(project.load()["ids"]) == (3, 2, 0, 1)
    assert project.load()["ids"].status == "unchanged"
    (project.path / "drop/b.csv").unlink()
    assert counts_of(project.load()["ids"]) == (2, 1, 0, 1)
    assert [row["id"] for row in project.rows("raw_drop.ids")] == ["1"]
    assert project.load()["ids"].status == "unchanged"
    (project.path / "drop/a.csv").unlink()
    assert "no file matches *.csv" in str(project.load()["ids"].error)


MARKETING = """
  coupons:
    primary_key: [id]
    cursor: updated_at
    write: merge
    columns: {updated_at: timestamp, code: text}
    contract: {required: [kind]}
    endpoint: {path: coupons, data_selector: data, incremental: {start_param: since}}
"""


def _declare_api(project: Project, address: str, tables: str = MARKETING) -> None:
    auth = f"auth: {{type: bearer, token: {TOKEN}}}"
    paginator = "paginator: {type: json_link, next_url_path: next}"
    connection = f"{{base_url: '{address}', {auth}, {paginator}}}"
    project.declare("marketing", "rest_api", connection, tables)


def _coupon(number: int, hour: int, *products: int, **more: object) -> Row:
    at = f"2017-01-01T{hour:02}:00:00Z"
    nested = [{"product_id": product} for product in products]
    return {
        "id": number,
        "kind": "k",
        "code": f"0{number}",
        "updated_at": at,
        "products": nested,
        **more,
    }


def test_an_api_is_read_page_by_page_and_then_from_its_cursor_on(
    project: Project, api: tuple[Api, str]
) -> None:
    server, address = api
    server.rows["coupons"] = [_coupon(i, i, i, i, i + 1) for i in range(1, 6)]
    server.refuse = [(429, {"retry-after": "1"}, b""), (500, {}, b"")]
    _declare_api(project, address)
    loads = project.load()
    assert counts_of(loads["coupons"]) == (5, 5, 0, 0)
    assert counts_of(loads["coupons__products"]) == (15, 15, 0, 0)
    first = project.rows("raw_marketing.coupons", "id, code, updated_at", "id")[0]
    assert first == {"id": 1, "code": "01", "updated_at": datetime(2017, 1, 1, 1)}
    server.asked.clear()
    before = project.versions()
    assert counts_of(project.load()["coupons"]) == (1, 0, 0, 1)
    # Just before the highest: this API's "since" means strictly after.
    assert [request.params["since"] for request in server.asked] == ["2017-01-01T04:59:59Z"]
    assert project.versions() == before
    server.rows["coupons"][1:2] = [_coupon(2, 9, 7)]
    server.rows["coupons"].append(_coupon(6, 5))
    assert counts_of(project.load()["coupons"]) == (3, 2, 0, 1)
    products = project.rows("raw_marketing.coupons__products", "product_id", "product_id")
    assert [row["product_id"] for row in products] == [1, 1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 7]


def test_a_quarantined_object_takes_its_children_along(
    project: Project, api: tuple[Api, str]
) -> None:
    server, address = api
    server.rows["coupons"] = [_coupon(1, 1, 5, 6), _coupon(2, 2, 7, kind=None), _coupon(1, 3, 8)]
    _declare_api(project, address)
    loads = project.load()
    assert counts_of(loads["coupons"]) == (3, 1, 1, 1)
    assert counts_of(loads["coupons__products"]) == (4, 1, 1, 2)
    (reason,) = project.rows("quarantine_marketing.coupons__products", "_reason")
    assert reason["_reason"] == "its row of raw_marketing.coupons is in quarantine"


def test_values_of_several_types_in_one_field(project: Project, api: tuple[Api, str]) -> None:
    server, address = api
    values: list[Any] = [1, 2.5, 3, "four"]
    server.rows["coupons"] = [_coupon(i, i, worth=value) for i, value in enumerate(values)]
    _declare_api(project, address)
    assert counts_of(project.load()["coupons"]) == (4, 2, 2, 0)
    reasons = [row["_reason"] for row in project.rows("quarantine_marketing.coupons", "_reason")]
    assert reasons == ["worth: '2.5' is not bigint", "worth: 'four' is not bigint"]
    server.rows["coupons"] = [_coupon(9, 9, worth="nine")]
    refused = project.load()["coupons"]
    assert "changed column worth from bigint to text" in str(refused.error)


@pytest.mark.parametrize(
    ("paginator", "param"),
    [
        ("{type: page_number, base_page: 1, page_param: p}", "p"),
        ("{type: offset, limit: 2, offset_param: o}", "o"),
        ("{type: cursor, cursor_path: meta.next, cursor_param: c}", "c"),
        ("{type: header_link}", "h"),
        ("{type: json_link, next_url_path: meta.link}", "h"),
    ],
)
def test_every_way_of_paging(project: Project, paginator: str, param: str) -> None:
    def answer(request: Any) -> tuple[int, dict[str, str], bytes]:
        at = int(request.params.get(param, 1 if param == "p" else 0))
        start = {"p": (at - 1) * 2}.get(param, at)
        assert request.params.get("key") == "k"
        link = f"{request.host}/things?h={start + 2}&key=k"
        more = start + 2 < 5
        meta = {"next": start + 2, "link": link} if more else {}
        rows = [{"id": i} for i in range(5)][start : start + 2]
        headers = {"content-type": "application/json"}
        if more and param == "h":
            headers["link"] = f'<{link}>; rel="next"'
        return 200, headers, json.dumps({"rows": rows, "meta": meta}).encode()

    with serving(answer) as address:
        auth = "auth: {type: api_key, name: key, api_key: k, location: query}"
        connection = f"{{base_url: '{address}', {auth}, paginator: {paginator}}}"
        things = "  things: {primary_key: [id], write: merge, endpoint: {path: things}}"
        project.declare("web", "rest_api", connection, things)
        assert counts_of(project.load()["things"]) == (5, 5, 0, 0)


def test_a_share_is_read_when_its_version_changes(project: Project) -> None:
    shared = project.path / "shared"
    people = pa.table({"id": [1, 2], "age": ["old", None], "area": ["n", "s"]})
    write_deltalake(shared, people, partition_by=["area"])
    with serving(sharing(shared)) as address:
        profile = {"shareCredentialsVersion": 1, "endpoint": address, "bearerToken": TOKEN}
        (project.path / "p.share").write_text(json.dumps(profile))
        where = "share: research, schema: panel, table: people"
        tables = f"  folk: {{{where}, primary_key: [id], write: replace}}"
        project.declare("research", "delta_sharing", "p.share", tables)
        assert counts_of(project.load()["folk"]) == (2, 2, 0, 0)
        assert project.rows("raw_research.folk") == people.to_pylist()
        before = project.versions()
        assert project.load()["folk"].status == "unchanged"
        assert project.versions() == before
        write_deltalake(shared, people.slice(1), mode="overwrite")
        assert counts_of(project.load()["folk"]) == (1, 1, 0, 0)
        project.declare("research", "delta_sharing", "p.share", tables.replace("people", "poeple"))
        error = str(project.load()["folk"].error)
        assert "the share answers 404 for research.panel.poeple" in error
        assert TOKEN not in error


def test_a_dead_system_does_not_stop_a_living_one(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, f"{MERGED}\n  ordres: {{write: append}}")
    project.declare("gone", "sql_database", "sqlite:///gone.db", MERGED)
    shop, gone = sorted(project.results(), key=lambda result: result.system, reverse=True)
    orders, ordres = shop.tables
    assert (orders.status, ordres.status, shop.failed) == ("loaded", "failed", True)
    assert "the database has no table 'ordres'; did you mean 'orders'?" in str(ordres.error)
    assert "ingestion/gone.yml:5: no database file gone.db" in str(gone.error)
    recorded = {(row["system"], row["status"]) for row in project.rows("tarn.loads")}
    assert recorded == {("shop", "loaded"), ("shop", "failed"), ("gone", "failed")}


def test_a_missing_variable_fails_its_system_with_the_line(project: Project) -> None:
    project.declare("shop", "sql_database", "${NOT_SET_ANYWHERE}", MERGED)
    error = str(project.load()["orders"].error)
    assert "ingestion/shop.yml:5: variable NOT_SET_ANYWHERE is not set" in error
    assert "export NOT_SET_ANYWHERE" in error


def test_no_message_contains_a_secret(project: Project, postgres: str) -> None:
    wrong = database(postgres, "secret").replace("p%40ss", "hunter%402")
    project.declare("refusing", "sql_database", wrong, MERGED)
    closed = "postgresql://me:hunter%402@127.0.0.1:1/x"
    project.declare("closed", "sql_database", closed, MERGED)
    project.declare("nobody", "sql_database", "hunter2://me:hunter%402@x/y", MERGED)
    with serving(Api().answer) as address:
        _declare_api(project, address, "\n  nothing: {write: append, endpoint: {path: none}}")
        text = (project.path / "ingestion/marketing.yml").read_text()
        bad = text.replace(TOKEN, "hunter@2")
        (project.path / "ingestion/marketing.yml").write_text(bad)
        errors = [str(table.error) for table in project.load().values()]
        results = project.results()
    errors += [str(table.error) for result in results for table in result.tables]
    errors += [row["error"] for row in project.rows("tarn.loads")]
    for error in errors:
        assert "unter@2" not in error
        assert "unter%402" not in error
        assert "Traceback" not in error
    told = {result.system: str(result.tables[0].error) for result in results}
    assert "answered 401" in told["marketing"]
    assert "check the credentials" in told["marketing"]
    assert "password authentication failed" in told["refusing"]
    assert "cannot open postgresql://me:***@127.0.0.1:1/x" in told["closed"]


def test_a_server_that_is_not_there_is_named(project: Project) -> None:
    _declare_api(project, "http://127.0.0.1:1")
    error = str(project.load()["coupons"].error)
    assert "cannot reach http://127.0.0.1:1/coupons: " in error
    assert "Connection refused" in error


def test_progress_is_told_in_lines_where_there_is_no_terminal(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, f"{MERGED}\n  nope: {{write: append}}")
    for expected in ("shop.orders: 2 accepted", "shop.orders: nothing new"):
        text = StringIO()
        ingest([], Console(file=text))
        assert expected in text.getvalue().splitlines()
    assert "shop.orders: started" in text.getvalue().splitlines()
    assert "shop.nope: failed: " in text.getvalue()


def test_progress_is_live_on_a_terminal(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, MERGED)
    text = StringIO()
    ingest([], Console(file=text, force_terminal=True, width=120))
    last = text.getvalue().rpartition("shop.orders")[2]
    assert "2 rows" in last
    assert "2 accepted" in last


def test_what_is_not_the_lake_can_be_deleted(project: Project) -> None:
    project.sql(ORDERS)
    project.file("a.csv", "id\n1\n")
    project.declare("shop", "sql_database", SHOP, MERGED)
    project.declare("drop", "files", "drop", "  ids: {path: a.csv, write: append}")
    project.load()
    before = project.versions()
    subprocess.run(["rm", "-rf", project.path / ".tarn"], check=True)
    assert {load.status for load in project.load().values()} == {"unchanged"}
    assert project.versions() == before


def _start(project: Project) -> "subprocess.Popen[bytes]":
    code = "from tarn.ingestion.engine import ingest; ingest()"
    return subprocess.Popen([sys.executable, "-c", code], cwd=project.path)


def test_ctrl_c_ends_a_load_at_once(project: Project) -> None:
    asked = Event()

    def never(request: Any) -> Any:
        asked.set()
        time.sleep(30)

    with serving(never) as address:
        _declare_api(project, address)
        process = _start(project)
        assert asked.wait(30)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, MERGED)
    # What it left in the working folder goes with the next load.
    assert project.load("shop")["orders"].status == "loaded"


def test_two_loads_at_once_are_one(project: Project) -> None:
    project.sql(NUMBERS + "create table clicks (page text, at timestamp);")
    project.sql("insert into clicks select 'a', '2017-01-01' from numbers where value <= 1000;")
    project.declare("shop", "sql_database", SHOP, "  clicks: {cursor: at, write: append}")
    loads = [_start(project) for _ in range(2)]
    assert [load.wait(60) for load in loads] == [0, 0]
    assert len(project.rows("raw_shop.clicks")) == 1000


@pytest.mark.parametrize(
    "landmark",
    [
        "_tarn/quarantine/marketing",
        "raw_marketing/coupons__products",
        "raw_marketing/coupons",
        "tarn/files",
    ],
)
def test_a_load_killed_at_any_point_is_completed_by_the_next(
    project: Project, api: tuple[Api, str], landmark: str
) -> None:
    """The process dies as soon as a table of the lake is begun, or a little later."""
    server, address = api
    rows = [
        _coupon(i, i % 24, *range(i % 7), kind=None if i % 50 == 0 else "k") for i in range(300)
    ]
    server.rows["coupons"] = rows
    _declare_api(project, address)
    project.sql(NUMBERS + ORDERS + "create table clicks (page text);")
    project.sql("insert into clicks select value % 10 from numbers where value <= 50000;")
    project.declare("shop", "sql_database", SHOP, f"{MERGED}\n  clicks: {{write: append}}")
    lines = "".join(f"{i},2017-01-01\n" for i in range(50000))
    for name in "abc":
        project.file(f"sales/{name}.csv", f"sale_id,sold_on\n{lines},yesterday\n")
    project.declare("drop", "files", "drop", DROP)
    assert _kill_at(project, project.path / "lake" / landmark, 0)
    _kill_at(project, project.path / "lake" / landmark, 0.02)
    project.load()
    assert not [path for path in (project.path / "lake/_tarn").rglob("*") if path.is_file()]
    killed = _everything(project)
    subprocess.run(["rm", "-rf", project.path / "lake"], check=True)
    project.load()
    assert killed == _everything(project)


def _kill_at(project: Project, landmark: Path, delay: float) -> bool:
    """Whether the load was killed before it ended."""
    process = _start(project)
    before = set(landmark.rglob("*"))
    while process.poll() is None:
        if set(landmark.rglob("*")) != before:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    return process.wait() == -signal.SIGKILL


def _everything(project: Project) -> dict[str, Sequence[Row]]:
    """All tables but the history of loads, without the times at which rows were seen."""
    names = [name for name in project.lake.names() if not name.startswith("tarn.")]
    times = {True: "* exclude (_first_seen, _last_seen)", False: "*"}
    return {name: project.rows(name, times[name.startswith("quarantine_")]) for name in names}


def test_a_load_that_fails_halfway_writes_nothing(project: Project, api: tuple[Api, str]) -> None:
    server, _ = api
    server.rows["coupons"] = [_coupon(i, i) for i in range(5)]

    def breaking(request: Any) -> Any:
        broken = "start" in request.params
        return (400, {}, b"no more") if broken else server.answer(request)

    with serving(breaking) as address:
        _declare_api(project, address)
        assert "answered 400: no more" in str(project.load()["coupons"].error)
    assert list(project.versions()) == ["tarn.loads"]


def test_unknown_systems_and_mistakes_stop_before_anything_is_loaded(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", SHOP, MERGED)
    project.declare("other", "sql_database", SHOP, MERGED.replace("cursor", "cursr"))
    with pytest.raises(TarnError, match="unknown key 'cursr'"):
        ingest()
    with pytest.raises(TarnError, match="no system 'shoop'; did you mean 'shop'"):
        ingest(["shoop"])
    assert project.lake.names() == []
    assert project.load("shop")["orders"].status == "loaded"


MONEY, INSTANT, WHOLE, FRACTION = pa.decimal128(12, 2), pa.timestamp("us"), pa.int64(), pa.float64()


@pytest.mark.parametrize(
    ("values", "source", "target", "expected"),
    [
        (["12", " 7", "12.5", "x", "9" * 20], pa.string(), WHOLE, [12, 7, None, None, None]),
        ([1.0, 1.5, float("inf")], FRACTION, WHOLE, [1, None, None]),
        ([2**40, 5], WHOLE, pa.int32(), [None, 5]),
        ([2**60 + 1, 5], WHOLE, FRACTION, [None, 5.0]),
        ([0, 1, 2], WHOLE, pa.bool_(), [False, True, None]),
        (["1.25", "1.239", "1e3", "abc"], pa.string(), MONEY, ["1.25", None, "1000.00", None]),
        ([0.1 + 0.2, 0.125, float("nan"), 1e20], FRACTION, MONEY, ["0.30", None, None, None]),
        ([Decimal("1.2500"), Decimal("1.239")], pa.decimal128(9, 4), MONEY, ["1.25", None]),
        ([Decimal("2.00"), Decimal("2.50")], MONEY, WHOLE, [2, None]),
        (["2017-01-01", "2017-01-01 12:00"], pa.string(), pa.date32(), [date(2017, 1, 1), None]),
        (
            ["2017-01-01T05:00:00+02:00", "2017-01-01 05:00:00", "soon"],
            pa.string(),
            INSTANT,
            [datetime(2017, 1, 1, 3), datetime(2017, 1, 1, 5), None],
        ),
        ([1, 1000], pa.timestamp("ns"), INSTANT, [None, datetime(1970, 1, 1, 0, 0, 0, 1)]),
        ([b"\xff", b"a"], pa.binary(), pa.string(), [None, "a"]),
    ],
)
def test_a_cast_keeps_a_value_or_says_that_it_cannot(
    values: list[Any], source: pa.DataType, target: pa.DataType, expected: list[Any]
) -> None:
    result, bad = exact_cast(pa.array([*values, None], source), target)
    told = [str(each) if isinstance(each, Decimal) else each for each in result.to_pylist()]
    assert told == [*expected, None]
    marked = bad.to_pylist() if bad is not None else [False] * len(told)
    assert marked == [*[each is None for each in expected], False]


def test_the_password_for_tests_needs_escaping() -> None:
    assert {"@", "/"} <= set(PASSWORD)
