"""Loads that are asked for otherwise: a table, a span again, all anew, a look without a trace."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pytest

from tarn.errors import TarnError
from tarn.ingestion.engine import LoadResult, ingest
from tarn.ingestion.ledger import TableLoad
from tarn.ingestion.options import Options, Span
from tests.engine.ingesting import Project, Row, api, counts_of, project
from tests.engine.upstreams import TOKEN, Api

__all__ = ["api", "project"]

SHOP = "sqlite:///shop.db"
SALES = """
    create table sales (id integer primary key, note text, sold_at timestamp);
    insert into sales values
        (1, 'a', '2017-01-31 23:59:59'), (2, 'b', '2017-02-01 00:00:00'),
        (3, 'c', '2017-02-28 23:59:59.5'), (4, 'd', '2017-03-01 00:00:00'), (5, 'e', null);
"""
MERGED = "  sales: {primary_key: [id], cursor: sold_at, write: merge}"
KEYED = MERGED.replace("merge", "append")
KEYLESS = "  sales: {cursor: sold_at, write: append}"
MODES = pytest.mark.parametrize("table", [MERGED, KEYED, KEYLESS], ids=["merge", "key", "no-key"])


def load(**options: Any) -> dict[str, TableLoad]:
    results: list[LoadResult] = ingest((), None, Options(**options))
    for table in (table for result in results for table in result.tables):
        counts = table.counts
        print(table)
        assert counts.read == counts.accepted + counts.quarantined + counts.deduplicated
    return {table.table: table for result in results for table in result.tables}


def backfill(text: str) -> TableLoad:
    return load(backfill=Span.read(text))["sales"]


def notes(project: Project) -> dict[int, str]:
    rows = project.rows("raw_shop.sales", "id, note", "id")
    assert len(rows) == len({row["id"] for row in rows})
    return {row["id"]: row["note"] for row in rows}


@pytest.mark.parametrize(
    ("text", "kind", "low", "high"),
    [
        ("2017-12", pa.timestamp("us"), "2017-12-01", "2017-12-31 23:59:59.999999"),
        ("2016-02..2017", pa.timestamp("us"), "2016-02-01", "2017-12-31 23:59:59.999999"),
        ("2016-02-28..2016-02-29", pa.date32(), date(2016, 2, 28), date(2016, 2, 29)),
        ("2016-02", pa.date32(), date(2016, 2, 1), date(2016, 2, 29)),
        ("2017-01-01T10:00..2017-01-01 10:00:05", pa.timestamp("us"), "2017-01-01 10:00:00",
         "2017-01-01 10:00:05.999999"),
        ("2017-01-01T10:00+02:00", pa.timestamp("us"), "2017-01-01 08:00:00",
         "2017-01-01 08:00:59.999999"),
        ("7..9", pa.int64(), 7, 9),
        ("a..b", pa.string(), "a", "b\U0010ffff"),
    ],
)  # fmt: skip
def test_the_end_of_a_span_is_the_end_of_the_period_it_names(
    text: str, kind: pa.DataType, low: Any, high: Any
) -> None:
    if isinstance(low, str) and pa.types.is_timestamp(kind):
        low, high = datetime.fromisoformat(low), datetime.fromisoformat(high)
    assert Span.read(text).bounds(kind) == (low, high)


@pytest.mark.parametrize("text", ["", "..2017", "2017..", "2017-05..2017-03", "2017-13", "soon"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(TarnError, match=r"span|no timestamp|before it begins"):
        Span.read(text).bounds(pa.timestamp("us"))


@MODES
def test_a_backfill_makes_the_span_what_the_source_has(project: Project, table: str) -> None:
    project.sql(SALES)
    project.declare("shop", "sql_database", SHOP, table)
    project.load()
    project.sql(
        "update sales set note = 'B' where id = 2; delete from sales where id = 3;"
        "insert into sales values (6, 'f', '2017-02-10'); update sales set note = 'X' where id = 1;"
        "insert into sales values (7, 'g', '2017-03-02');"
    )
    done = backfill("2017-02")
    assert done.status == "loaded"
    expected = {1: "a", 2: "B", 4: "d", 5: "e", 6: "f", 7: "g"}
    assert notes(project) == expected
    before = project.versions()
    assert counts_of(backfill("2017-02")) == (2, 0, 0, 2)
    assert project.versions() == before
    assert load()["sales"].status == "unchanged"
    assert notes(project) == expected


@MODES
def test_a_span_that_the_source_has_forgotten_is_kept(project: Project, table: str) -> None:
    project.sql(SALES)
    project.declare("shop", "sql_database", SHOP, table)
    project.load()
    project.sql("delete from sales where sold_at < '2017-03-01';")
    before = project.versions()
    refused = backfill("2017-01..2017-02")
    assert refused.status == "failed"
    assert "the source has no rows of 2017-01..2017-02, the table has 3" in str(refused.error)
    assert {**project.versions(), "tarn.loads": 0} == {**before, "tarn.loads": 0}


@MODES
def test_a_table_may_begin_with_a_span(project: Project, table: str) -> None:
    project.sql(SALES)
    project.declare("shop", "sql_database", SHOP, table)
    assert counts_of(backfill("2017-02")) == (2, 2, 0, 0)
    assert list(notes(project)) == [2, 3]
    load()
    assert list(notes(project)) == [2, 3, 4, 5]


def test_a_row_that_left_the_span_is_not_missed(project: Project) -> None:
    project.sql(SALES)
    project.declare("shop", "sql_database", SHOP, MERGED)
    project.load()
    project.sql("update sales set sold_at = '2017-04-01' where id = 2;")
    backfill("2017-02")
    assert sorted(notes(project)) == [1, 2, 3, 4, 5]


def test_a_backfill_with_a_wider_type_keeps_what_is_beside_the_span(project: Project) -> None:
    project.sql("create table sales (id integer primary key, amount decimal(6,2), at date);")
    project.sql("insert into sales values (1, 1.25, '2017-01-01'), (2, 2.25, '2017-02-01');")
    table = "  sales: {primary_key: [id], cursor: at, write: merge, contract: {types: widen}}"
    project.declare("shop", "sql_database", SHOP, table)
    project.load()
    project.sql("alter table sales rename to old; create table sales (id integer primary key,"
                " amount decimal(9,4), at date); insert into sales select * from old;")  # fmt: skip
    backfill("2017-01")
    assert len(project.rows("raw_shop.sales")) == 2


def test_tables_without_cursor_are_skipped_and_refused_by_name(project: Project) -> None:
    project.sql(SALES)
    project.declare(
        "shop", "sql_database", SHOP, f"{MERGED}\n  all: {{table: sales, write: replace}}"
    )
    project.load()
    assert list(load(backfill=Span.read("2017-02"))) == ["sales"]
    refused = load(backfill=Span.read("2017-02"), tables=("all",))["all"]
    assert "the table has no cursor" in str(refused.error)
    assert "cursor is" in str(backfill("2017-02..soon").error)


def test_files_are_backfilled_by_their_cursor_and_loaded_once(project: Project) -> None:
    table = "  sales: {path: '*.csv', cursor: day, write: append, columns: {day: date}}"
    project.declare("drop", "files", "drop", table)
    project.file("1.csv", "day,note\n2017-01-31,a\n2017-02-01,b\n2017-02-01,b\n")
    project.load()
    project.file("1.csv", "day,note\n2017-01-31,A\n2017-02-01,B\n2017-02-01,B\n")
    project.file("2.csv", "day,note\n2017-02-02,c\n2017-03-01,d\n")
    for _ in range(2):
        backfill("2017-02")
        rows = project.rows("raw_drop.sales", "note", "note")
        assert [row["note"] for row in rows] == ["A", "B", "B", "c", "d"]
    assert load()["sales"].status == "unchanged"


COUPONS = """
  coupons:
    primary_key: [id]
    cursor: updated_at
    write: merge
    columns: {updated_at: timestamp}
    endpoint: {path: coupons, data_selector: data, incremental: {start_param: since}}
"""


def declare_api(project: Project, address: str, tables: str = COUPONS) -> None:
    auth = f"auth: {{type: bearer, token: {TOKEN}}}"
    paginator = "paginator: {type: json_link, next_url_path: next}"
    project.declare("web", "rest_api", f"{{base_url: '{address}', {auth}, {paginator}}}", tables)


def coupon(number: int, day: int, *tags: str, **more: Any) -> Row:
    return {"id": number, "updated_at": f"2017-01-{day:02}", "tags": [*tags], **more}


@pytest.mark.parametrize("keyed", [True, False])
def test_objects_and_their_children_are_backfilled(
    project: Project, api: tuple[Api, str], keyed: bool
) -> None:
    server, address = api
    tables = COUPONS if keyed else COUPONS.replace("merge", "append").replace("primary_key", "#")
    declare_api(project, address, tables)
    server.rows["coupons"] = [coupon(i, i, f"t{i}", "x") for i in range(1, 6)]
    load()
    server.rows["coupons"][1] = coupon(2, 2, "new")
    del server.rows["coupons"][2]
    for _ in range(2):
        load(backfill=Span.read("2017-01-02..2017-01-03"))
        ids = project.rows("raw_web.coupons", "id", "id")
        tags = project.rows("raw_web.coupons__tags", "value", "value")
        assert [row["id"] for row in ids] == [1, 2, 4, 5]
        assert [row["value"] for row in tags] == ["new", "t1", "t4", "t5", "x", "x", "x"]
    assert server.asked[-1].params["since"] < "2017-01-02"
    assert load()["coupons"].status == "unchanged"


@MODES
def test_a_full_refresh_replaces_in_one_commit_and_takes_a_new_type(
    project: Project, table: str
) -> None:
    project.sql(SALES)
    project.declare("shop", "sql_database", SHOP, table)
    project.load()
    project.sql("drop table sales; create table sales (id integer primary key, note integer,"
                " sold_at timestamp); insert into sales values (1, 9, '2017-01-01');")  # fmt: skip
    before = project.versions()["raw_shop.sales"]
    assert load(full_refresh=True)["sales"].status == "loaded"
    assert project.versions()["raw_shop.sales"] == before + 1
    assert project.rows("raw_shop.sales", "note") == [{"note": 9}]
    assert project.types("raw_shop.sales")["note"] == "int64"
    assert load()["sales"].status == "unchanged"
    project.sql("delete from sales;")
    refused = load(full_refresh=True)["sales"]
    assert "the source is empty, the table has 1 rows" in str(refused.error)
    assert project.rows("raw_shop.sales", "note") == [{"note": 9}]


def test_a_full_refresh_forgets_files_that_were_loaded(project: Project) -> None:
    project.declare("drop", "files", "drop", "  sales: {path: '*.csv', write: append}")
    project.file("1.csv", "id\n1\n")
    project.file("2.csv", "id\n2\n")
    project.load()
    (project.path / "drop/1.csv").unlink()
    load(full_refresh=True)
    assert [row["id"] for row in project.rows("raw_drop.sales")] == ["2"]
    assert load()["sales"].status == "unchanged"


def files_of(project: Project) -> dict[str, str]:
    """Every file of the lake by content."""
    found = (path for path in sorted((project.path / "lake").rglob("*")) if path.is_file())
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize(
    "options",
    [{}, {"full_refresh": True}, {"backfill": Span.read("2017-01")}, {"limit": 1}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_a_dry_run_writes_nothing(
    project: Project, api: tuple[Api, str], options: dict[str, Any]
) -> None:
    server, address = api
    rules = COUPONS + '    rules: ["id < 100"]\n'
    declare_api(project, address, rules)
    project.sql(SALES)
    project.declare("shop", "sql_database", SHOP, MERGED)
    project.declare("drop", "files", "drop", "  ids: {path: '*.csv', write: append}")
    project.file("1.csv", "id\n1\n")
    load(dry_run=True, **options)
    assert files_of(project) == {}
    server.rows["coupons"] = [coupon(1, 1, "a"), coupon(101, 2, "b")]
    load()
    server.rows["coupons"] += [coupon(3, 3, "c", colour="red"), coupon(102, 4)]
    project.sql("insert into sales values (6, 'f', '2017-04-01');")
    project.file("2.csv", "id\n2\n")
    before = files_of(project)
    found = load(dry_run=True, **options)
    assert files_of(project) == before
    done = load()
    if not options:
        assert {name: counts_of(table) for name, table in found.items()} == {
            name: counts_of(table) for name, table in done.items()
        }
        assert found["coupons"].notes == ("new column colour (text)",)
        assert found["sales"].columns == {"id": "bigint", "note": "text", "sold_at": "timestamp"}
    assert len(project.rows("raw_shop.sales")) == 6


@pytest.mark.parametrize("write", ["merge", "append", "replace"])
def test_rows_beyond_a_limit_come_with_the_next_load(project: Project, write: str) -> None:
    project.sql(SALES)
    table = {"merge": MERGED, "append": KEYLESS, "replace": "  sales: {write: replace}"}[write]
    project.declare("shop", "sql_database", SHOP, table)
    for _ in range(2):
        assert counts_of(load(limit=2)["sales"])[1] == 2
        assert len(project.rows("raw_shop.sales")) == 2
    load()
    assert len(project.rows("raw_shop.sales")) == 5
    assert load()["sales"].status == "unchanged"
    refused = load(limit=2)["sales"]
    assert "--limit is for a first try, and the table has 5 rows already" in str(refused.error)
    assert counts_of(load(limit=2, dry_run=True)["sales"])[0] == 2


def test_a_limit_holds_for_objects_and_files(project: Project, api: tuple[Api, str]) -> None:
    server, address = api
    server.rows["coupons"] = [coupon(i, i, f"t{i}") for i in range(1, 8)]
    declare_api(project, address)
    project.declare("drop", "files", "drop", "  ids: {path: '*.csv', write: append}")
    project.file("1.csv", "id\n1\n2\n3\n")
    load(limit=3)
    assert len(server.asked) < 4
    for expected in (3, 7):
        assert len(project.rows("raw_web.coupons")) == expected
        assert len(project.rows("raw_web.coupons__tags")) == expected
        assert len(project.rows("raw_drop.ids")) == 3
        load()


def test_options_that_contradict_are_refused() -> None:
    for options in ({"full_refresh": True, "limit": 1}, {"backfill": Span("1", "2"), "limit": 1},
                    {"full_refresh": True, "backfill": Span("1", "2")}):  # fmt: skip
        with pytest.raises(TarnError):
            Options(**options)


def test_single_tables_are_loaded_by_name(project: Project) -> None:
    project.sql(SALES)
    both = f"{MERGED}\n  more: {{table: sales, write: replace}}"
    project.declare("shop", "sql_database", SHOP, both)
    project.declare("other", "sql_database", SHOP, "  rest: {table: sales, write: replace}")
    assert list(load(tables=("shop.more", "rest"))) == ["rest", "more"]
    assert list(project.versions()) == ["raw_other.rest", "raw_shop.more", "tarn.loads"]
    with pytest.raises(TarnError, match=r"no system has a table 'moer'"):
        load(tables=("moer",))
    assert "did you mean 'more'" in str(load(tables=("shop.moer",))["moer"].error)


def start(project: Project, options: str) -> "subprocess.Popen[bytes]":
    code = (
        "from tarn.ingestion.engine import ingest; from tarn.ingestion.options import *;"
        f"ingest((), None, Options({options}))"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=project.path)


def kill_at(project: Project, landmark: str, options: str, delay: float) -> bool:
    """Whether the load was killed before it ended."""
    folder = project.path / "lake" / landmark
    before = set(folder.rglob("*"))
    process = start(project, options)
    while process.poll() is None:
        if set(folder.rglob("*")) != before:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    return process.wait() == -signal.SIGKILL


def everything(project: Project) -> dict[str, list[Row]]:
    names = [name for name in project.lake.names() if not name.startswith("tarn.")]
    return {name: project.rows(name) for name in names}


@pytest.mark.parametrize(
    ("options", "landmark"),
    [
        ("full_refresh=True", "raw_web/coupons__tags"),
        ("full_refresh=True", "raw_shop/sales"),
        ("backfill=Span.read('2017-01')", "raw_web/coupons/"),
        ("backfill=Span.read('2017-01')", "raw_shop/sales"),
    ],
)
def test_a_refresh_or_backfill_killed_anywhere_is_completed(
    project: Project, api: tuple[Api, str], options: str, landmark: str
) -> None:
    server, address = api
    server.rows["coupons"] = [coupon(i, i % 27 + 1, *"ab"[: i % 3], kind="k") for i in range(60)]
    declare_api(project, address)
    project.sql(SALES)
    project.declare("shop", "sql_database", SHOP, KEYLESS)
    load()
    for i in range(0, 60, 3):
        # The cursor does not tell: only these loads notice.
        server.rows["coupons"][i] = coupon(i, i % 27 + 1, "new", kind="K")
    del server.rows["coupons"][7]
    project.sql("update sales set note = 'A' where id = 1;")
    kill_at(project, landmark, options, 0)
    kill_at(project, landmark, options, 0.01)
    is_full = "full" in options
    load(full_refresh=is_full, backfill=None if is_full else Span.read("2017-01"))
    assert not [path for path in (project.path / "lake/_tarn").rglob("*") if path.is_file()]
    expected = everything(project)
    (project.path / "lake").rename(project.path / "gone")
    load()
    assert everything(project) == expected
    assert json.dumps(expected, default=str).count('"K"') == 20


def test_a_killed_refresh_is_ended_by_an_ordinary_load(
    project: Project, api: tuple[Api, str]
) -> None:
    server, address = api
    server.rows["coupons"] = [coupon(i, i % 27 + 1, "old") for i in range(60)]
    declare_api(project, address)
    load()
    server.rows["coupons"] = [coupon(i, i % 27 + 1, "new") for i in range(60)]
    assert kill_at(project, "_tarn/unfinished", "full_refresh=True", 0)
    load()
    tags = project.rows("raw_web.coupons__tags", "distinct value")
    assert tags == [{"value": "new"}]
    assert load()["coupons"].status == "unchanged"


def test_two_backfills_at_once_are_one(project: Project) -> None:
    project.sql(SALES)
    project.declare("shop", "sql_database", SHOP, KEYLESS)
    load()
    project.sql("update sales set note = 'B' where id = 2;")
    processes = [start(project, "backfill=Span.read('2017-02')") for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert notes(project)[2] == "B"
