"""Drift: each way in which a source changes without notice, from a database, from files and from
an API; what is told of it, what the lake holds then, and that the load after mending works."""

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarn.ingestion.drift import open_blocks
from tests.engine.ingesting import Project, Row, api, counts_of, project
from tests.engine.postgres import database, postgres
from tests.engine.upstreams import TOKEN, Api

__all__ = ["api", "postgres", "project"]

SHOP = "sqlite:///shop.db"


def _drift(project: Project, table: str | None = None) -> list[tuple[Any, ...]]:
    """Column, change, before, after, verdict of each row, oldest first."""
    if "tarn.drift" not in project.lake.names():
        return []
    columns = "column_name, change, before, after, verdict"
    order = "noticed_at, column_name"
    where = f"table_name, {columns}"
    rows = project.rows("tarn.drift", where, order)
    return [tuple(row.values())[1:] for row in rows if table in (None, row["table_name"])]


def _declare(project: Project, how: str = "primary_key: [id], write: merge") -> None:
    project.declare("shop", "sql_database", SHOP, f"  things: {{{how}}}")


def _things(project: Project, columns: str, *rows: str) -> None:
    """The table anew, as its owner has changed it."""
    project.sql(f"drop table if exists things; create table things ({columns});")
    for row in rows:
        project.sql(f"insert into things values ({row});")


def _start(project: Project, how: str = "primary_key: [id], write: merge") -> None:
    _things(
        project,
        "id bigint primary key, amount decimal(10,2), note text",
        *(f"{i}, {i}.25, 'n{i}'" for i in range(1, 13)),
    )
    _declare(project, how)
    assert project.load()["things"].status == "loaded"


NAMES = "id bigint primary key, total decimal(10,2), note text"
SAME = [f"{i}, {i}.25, 'n{i}'" for i in range(1, 14)]


@pytest.mark.parametrize(
    "how",
    ["primary_key: [id], write: merge", "primary_key: [id], write: append", "write: replace"],
    ids=["merge", "append", "replace"],
)
def test_a_renamed_column_stops_the_load_until_it_is_said_what_it_is(
    project: Project, how: str
) -> None:
    _start(project, how)
    before = project.versions()
    _things(project, NAMES, *SAME)
    for _ in range(2):
        refused = project.load()["things"]
        assert refused.status == "failed"
    assert "column amount is gone and total is new, which looks renamed" in str(refused.error)
    assert "renamed: {total: amount}" in str(refused.error)
    assert "dropped: [amount]" in str(refused.error)
    assert project.versions()["raw_shop.things"] == before["raw_shop.things"]
    renamed = ("amount", "renamed", "amount", "total")
    assert _drift(project) == [(*renamed, "blocked")]
    (block,) = open_blocks(project.lake)
    assert (block.system, block.table, block.column) == ("shop", "things", "amount")
    _declare(project, f"{how}, contract: {{renamed: {{total: amount}}}}")
    assert project.load()["things"].status == "loaded"
    rows = project.rows("raw_shop.things", "id, amount", "id")
    assert [row["amount"] for row in rows] == [Decimal(f"{i}.25") for i in range(1, 14)]
    assert list(project.types("raw_shop.things"))[:3] == ["id", "amount", "note"]
    assert open_blocks(project.lake) == []
    assert _drift(project) == [(*renamed, "blocked"), (*renamed, "accepted")]
    assert project.load()["things"].status == "unchanged"


def test_a_renamed_cursor_goes_on_from_where_it_was(project: Project) -> None:
    columns = "id bigint, at timestamp"
    _things(project, columns, "1, '2017-01-01'", "2, '2017-01-02'")
    _declare(project, "write: append, cursor: at")
    project.load()
    project.sql("alter table things rename column at to changed;")
    project.sql("insert into things values (3, '2017-01-03');")
    assert "column 'at', declared under cursor" in str(project.load()["things"].error)
    _declare(project, "write: append, cursor: at, contract: {renamed: {changed: at}}")
    assert counts_of(project.load()["things"]) == (2, 1, 0, 1)
    assert len(project.rows("raw_shop.things")) == 3


def test_what_looks_renamed_can_be_two_columns(project: Project) -> None:
    _start(project)
    _things(project, NAMES, *SAME)
    assert project.load()["things"].status == "failed"
    _declare(project, "primary_key: [id], write: merge, contract: {dropped: [amount]}")
    assert project.load()["things"].status == "loaded"
    (row,) = project.rows("raw_shop.things", "*", "id")[-1:]
    assert (row["id"], row["amount"], row["total"]) == (13, None, 13.25)
    assert sorted(_drift(project), key=str)[:2] == [
        ("amount", "dropped", "decimal(10,2)", None, "accepted"),
        ("amount", "renamed", "amount", "total", "blocked"),
    ]


def test_mending_the_source_ends_a_block_and_the_same_change_later_is_new(
    project: Project,
) -> None:
    _start(project)
    kept = SAME[:12]
    for _ in range(2):
        _things(project, NAMES, *kept)
        assert project.load()["things"].status == "failed"
        assert len(open_blocks(project.lake)) == 1
        _things(project, NAMES.replace("total", "amount"), *kept)
        assert project.load()["things"].status == "unchanged"
        assert open_blocks(project.lake) == []
    assert len(_drift(project)) == 2


def test_another_column_for_one_that_is_gone_is_told_and_let_in(project: Project) -> None:
    _start(project)
    _things(
        project,
        "id bigint primary key, amount decimal(10,2), seen_by bigint",
        *(f"{i}, {i}.25, {i * 7}" for i in range(1, 14)),
    )
    load = project.load()["things"]
    assert load.status == "loaded"
    assert set(load.notes) == {
        "new column seen_by (bigint)",
        "column note is no longer delivered",
    }
    assert sorted(_drift(project)) == [
        ("note", "dropped", "text", None, "accepted"),
        ("seen_by", "added", None, "bigint", "accepted"),
    ]
    assert project.load()["things"].notes == ()
    assert [row["note"] for row in project.rows("raw_shop.things", "note", "id")] == [
        *(f"n{i}" for i in range(1, 13)),
        None,
    ]
    back = "id bigint primary key, amount decimal(10,2), seen_by bigint, note text"
    _things(project, back, "14, 1, 1, 'again'")
    assert project.load()["things"].notes == ("column note is delivered again",)
    assert _drift(project)[-1] == ("note", "added", None, "text", "accepted")


@pytest.mark.parametrize(
    ("declared", "key"),
    [
        ("contract: {required: [note]}", "required"),
        ("columns: {note: text}", "columns"),
        ("rules: [\"note <> 'x'\"]", "rules"),
        ("partition_by: [note]", "partition_by"),
    ],
)
def test_a_column_that_a_declaration_names_may_not_go(
    project: Project, declared: str, key: str
) -> None:
    how = f"primary_key: [id], write: merge, {declared}"
    _start(project, how)
    _things(project, "id bigint primary key, amount decimal(10,2)", "14, 1.5")
    error = str(project.load()["things"].error)
    assert f"column 'note', declared under {key}, is not delivered" in error
    assert _drift(project) == [("note", "dropped", "text", None, "blocked")]
    _things(project, "id bigint primary key, amount decimal(10,2), note text", "14, 1.5, 'y'")
    assert counts_of(project.load()["things"]) == (1, 1, 0, 0)
    assert open_blocks(project.lake) == []


def test_order_and_spelling_are_harmless_and_noted_once(project: Project) -> None:
    _start(project)
    _things(
        project,
        '"Note" text, id bigint primary key, "AMOUNT" decimal(10,2)',
        *(f"'n{i}', {i}, {i}.25" for i in range(1, 14)),
    )
    load = project.load()["things"]
    assert counts_of(load) == (13, 1, 0, 12)
    noted = sorted(_drift(project), key=str)
    assert noted == [
        ("amount", "recased", "amount", "AMOUNT", "accepted"),
        ("note", "recased", "note", "Note", "accepted"),
        (None, "reordered", "id, amount, note", "note, id, amount", "accepted"),
    ]
    project.load()
    assert sorted(_drift(project), key=str) == noted


def _postgres(address: str, statement: str) -> None:
    with psycopg.connect(address) as connection:
        connection.execute(statement)


WIDER = [
    ("integer", "bigint", "2147483648", 2**31),
    ("integer", "numeric(12,2)", "1.25", Decimal("1.25")),
    ("real", "double precision", "0.1", 0.1),
    ("numeric(6,2)", "numeric(12,4)", "1.2345", Decimal("1.2345")),
    ("date", "timestamp", "'2017-01-01 10:00'", datetime(2017, 1, 1, 10)),
]


def test_a_wider_type_is_refused_or_taken_and_a_narrower_is_harmless(
    project: Project, postgres: str
) -> None:
    address = database(postgres, "drifting")
    old = {f"c{i}": was for i, (was, *_) in enumerate(WIDER)}
    new = {f"c{i}": now for i, (_, now, *_) in enumerate(WIDER)}
    columns = ", ".join(f"{name} {kind}" for name, kind in old.items())
    _postgres(address, f"create table things (id bigint primary key, {columns})")
    _postgres(address, "insert into things values (1, 1, 1, 0.5, 1.5, '2017-01-01')")
    terms = "primary_key: [id], write: merge"
    project.declare("erp", "sql_database", address, f"  things: {{{terms}}}")
    assert project.load()["things"].status == "loaded"
    for name, kind in new.items():
        _postgres(address, f"alter table things alter {name} type {kind}")
    values = ", ".join(value for _, _, value, _ in WIDER)
    _postgres(address, f"insert into things values (2, {values})")
    error = str(project.load()["things"].error)
    for name, was, now in [("c0", "integer", "bigint"), ("c3", "decimal(6,2)", "decimal(12,4)")]:
        assert f"changed column {name} from {was} to {now}" in error
    assert {row[0]: row[-1] for row in _drift(project)} == dict.fromkeys(new, "blocked")
    wide = f"  things: {{{terms}, contract: {{types: widen}}}}"
    project.declare("erp", "sql_database", address, wide)
    assert project.load()["things"].status == "loaded"
    rows = project.rows("raw_erp.things", order="id")
    assert [rows[1][name] for name in new] == [value for *_, value in WIDER]
    assert rows[0]["c1"] == 1
    widened = [row for row in _drift(project) if row[-1] == "widened"]
    assert {row[0] for row in widened} == set(new)
    _postgres(address, "delete from things where id = 2")
    for name, kind in old.items():
        _postgres(address, f"alter table things alter {name} type {kind}")
    _postgres(address, "insert into things values (3, 1, 1, 0.5, 1.5, '2017-01-01')")
    assert counts_of(project.load()["things"]) == (2, 1, 0, 1)
    assert ("c0", "retyped", "bigint", "integer", "accepted") in _drift(project)
    assert project.types("raw_erp.things")["c0"] == "int64"
    _postgres(address, "alter table things alter c0 type text using 'lots'")
    assert "changed column c0 from bigint to text" in str(project.load()["things"].error)
    assert len(open_blocks(project.lake)) == 1
    _postgres(address, "alter table things alter c0 type int using 7")
    assert project.load()["things"].status == "loaded"
    assert open_blocks(project.lake) == []


def test_a_column_that_is_all_null_now_is_told_and_if_required_refused(project: Project) -> None:
    _start(project)
    columns = "id bigint primary key, amount decimal(10,2), note text"
    _things(project, columns, *(f"{i}, {i}.25, null" for i in range(13, 26)))
    load = project.load()["things"]
    assert (load.status, load.notes) == ("loaded", ("column note is all null",))
    assert _drift(project) == [("note", "nulled", "text", None, "accepted")]
    _declare(project, "primary_key: [id], write: merge, contract: {required: [note]}")
    _things(project, columns, *(f"{i}, {i}.25, null" for i in range(26, 39)))
    error = str(project.load()["things"].error)
    assert "column note, which is required, has no value in 13 rows" in error
    assert _drift(project)[-1] == ("note", "nulled", "text", None, "blocked")
    _things(project, columns, *(f"{i}, {i}.25, 'x'" for i in range(26, 39)))
    assert counts_of(project.load()["things"]) == (13, 13, 0, 0)


@pytest.mark.parametrize("kind", ["sql_database", "files"])
def test_a_replace_may_not_lose_most_rows(project: Project, kind: str) -> None:
    def lay(rows: int) -> None:
        _things(project, "id bigint", *map(str, range(rows)))
        project.file("things.csv", "id\n" + "".join(f"{i}\n" for i in range(rows)))

    def declare(more: str) -> None:
        where = SHOP if kind == "sql_database" else "drop"
        path = "" if kind == "sql_database" else "path: things.csv, "
        project.declare("shop", kind, where, f"  things: {{{path}write: replace{more}}}")

    lay(10)
    declare("")
    project.load()
    lay(4)
    error = str(project.load()["things"].error)
    assert "the source has 4 rows and the table 10, a loss of more than 50%" in error
    assert len(project.rows("raw_shop.things")) == 10
    assert _drift(project) == [(None, "shrunk", "10 rows", "4 rows", "blocked")]
    declare(", contract: {max_shrink: 60%}")
    assert project.load()["things"].status == "loaded"
    assert len(project.rows("raw_shop.things")) == 4
    assert open_blocks(project.lake) == []
    lay(0)
    assert "the source is empty" in str(project.load()["things"].error)


FILES = "  sales: {path: 'sales/*', primary_key: [id], write: merge}"


def test_files_drift(project: Project) -> None:
    project.declare("drop", "files", "drop", FILES)
    project.file("sales/1.csv", "id,Price,note\n1,1.5,a\n2,2.5,b\n3,3.5,c\n")
    project.load()
    project.file("sales/2.csv", "note,id,PRICE\nd,4,4.5\n")
    assert project.load()["sales"].status == "loaded"
    assert sorted(_drift(project), key=str) == [
        ("price", "recased", "Price", "PRICE", "accepted"),
        (None, "reordered", "id, price, note", "note, id, price", "accepted"),
    ]
    project.file("sales/3.csv", "id,unit_price,note\n5,5.5,e\n")
    error = str(project.load()["sales"].error)
    assert "column price is gone and unit_price is new" in error
    renamed = "contract: {renamed: {unit_price: price}}"
    project.declare("drop", "files", "drop", FILES.replace("write", f"{renamed}, write"))
    # Files of before and after in one load.
    project.file("sales/4.csv", "id,price,note\n6,6.5,f\n")
    assert counts_of(project.load()["sales"]) == (2, 2, 0, 0)
    prices = [row["price"] for row in project.rows("raw_drop.sales", "price", "id")]
    assert prices == ["1.5", "2.5", "3.5", "4.5", "5.5", "6.5"]


def test_parquet_drift(project: Project) -> None:
    folder = project.path / "drop/sales"
    folder.mkdir(parents=True)
    project.declare("drop", "files", "drop", FILES)

    def lay(number: int, **columns: Any) -> str:
        pq.write_table(pa.table(columns), folder / f"{number}.parquet")
        load = project.load()["sales"]
        return str(load.error) if load.error else ", ".join(load.notes)

    lay(1, id=[1], n=pa.array([1], pa.int32()), word=["a"])
    assert "changed column n from integer to text" in lay(2, id=[2], n=["x"], word=["b"])
    (folder / "2.parquet").unlink()
    assert lay(3, id=[3], n=pa.array([1], pa.int16()), word=["b"]).startswith("narrower column n")
    assert lay(4, id=[4], n=pa.array([1], pa.int32())) == "column word is no longer delivered"
    assert "changed column n from integer to bigint" in lay(5, id=[5], n=[2**40], word=["c"])
    assert [row["id"] for row in project.rows("raw_drop.sales", "id", "id")] == [1, 3, 4]


def _serve(project: Project, api: tuple[Api, str], terms: str = "") -> Api:
    server, address = api
    auth = f"auth: {{type: bearer, token: {TOKEN}}}"
    paginator = "paginator: {type: json_link, next_url_path: next}"
    connection = f"{{base_url: '{address}', {auth}, {paginator}}}"
    endpoint = "endpoint: {path: leads, data_selector: data}"
    table = f"  leads: {{primary_key: [id], write: merge, {terms}{endpoint}}}"
    project.declare("crm", "rest_api", connection, table)
    return server


def _leads(numbers: range, **more: Any) -> list[Row]:
    base: Row = {"name": "n", "from": {"city": "x", "zip": 1}, "tags": [{"t": 1}]}
    leads = [{"id": i, "score": i * 3, **base, **more} for i in numbers]
    return [{key: value for key, value in lead.items() if value != "GONE"} for lead in leads]


@pytest.mark.parametrize(
    ("more", "told", "drift"),
    [
        (
            {"score": "GONE", "points": 7, "rating": "r"},
            "column score is gone and points is new",
            ("score", "renamed", "score", "points"),
        ),
        ({"from": "x"}, "field from was object and is text now", ("from", "retyped", "object")),
        ({"name": {"first": "n"}}, "field name was text and is object", ("name", "retyped")),
        ({"tags": {"t": 1}}, "field tags was list and is object", ("tags", "retyped", "list")),
        ({"name": [{"x": 1}]}, "field name was text and is list", ("name", "retyped", "text")),
        ({"score": "high"}, "changed column score from bigint to text", ("score", "retyped")),
    ],
    ids=["rename", "object to scalar", "scalar to object", "list to object", "to list", "flip"],
)
def test_an_api_that_changes_what_a_field_is(
    project: Project, api: tuple[Api, str], more: Row, told: str, drift: tuple[str, ...]
) -> None:
    server = _serve(project, api)
    server.rows["leads"] = _leads(range(12))
    project.load()
    changed = _leads(range(12), **more)
    if "points" in more:
        changed = [{**lead, "points": lead["id"] * 3} for lead in changed]
    server.rows["leads"] = changed
    before = project.versions()
    load = project.load()["leads"]
    assert load.status == "failed", load
    assert told in str(load.error)
    assert [row[: len(drift)] for row in _drift(project)] == [drift]
    assert project.versions()["raw_crm.leads"] == before["raw_crm.leads"]
    server.rows["leads"] = _leads(range(13))
    assert counts_of(project.load()["leads"])[1] == 1
    assert open_blocks(project.lake) == []


def test_fields_of_objects_come_and_go(project: Project, api: tuple[Api, str]) -> None:
    server = _serve(project, api)
    server.rows["leads"] = _leads(range(12))
    project.load()
    # One object without it may be chance; all of twelve are not.
    server.rows["leads"] = _leads(range(12, 13), name="GONE", extra=1)
    assert project.load()["leads"].notes == ("new column extra (bigint)",)
    server.rows["leads"] = _leads(range(13, 25), name=None)
    assert project.load()["leads"].notes == ("column name is no longer delivered",)
    assert _drift(project, "leads") == [
        ("extra", "added", None, "bigint", "accepted"),
        ("name", "dropped", "text", None, "accepted"),
    ]
    spelt = [{**lead, "Score": 1} for lead in _leads(range(25, 30), score="GONE")]
    server.rows["leads"] = spelt
    project.load()
    assert ("score", "recased", "score", "Score", "accepted") in _drift(project, "leads")


def test_each_load_tells_what_was_delivered(project: Project) -> None:
    _start(project)
    (row,) = project.rows("tarn.loads", "delivered")
    assert json.loads(row["delivered"]) == {"id": "id", "amount": "amount", "note": "note"}
