"""Databases as they are in the wild: whole ones by pattern, odd names, odd types, odd values, and
what happens when they fail. What landed is compared with what the database itself says."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import psycopg
import pyarrow as pa
import pytest
import yaml

from tarn.errors import TarnError
from tarn.ingestion.check import check, loads
from tarn.ingestion.declarations import FOLDER, declare, schema_text
from tarn.ingestion.sources.sql_database import SqlDatabase
from tarn.settings import settings
from tests.engine.ingesting import Project, counts_of, project
from tests.engine.mariadb import mariadb, mariadb_database, mariadb_sql
from tests.engine.postgres import PASSWORD, database, postgres

__all__ = ["mariadb", "postgres", "project"]


def _declare(project: Project, connection: str, rest: str, system: str = "shop") -> None:
    """`rest` is YAML at the top level: include, exclude, tables."""
    (project.path / f"ingestion/{system}.yml").write_text(
        f"system: {system}\ndescription: For a test.\nowner: {{name: Us, email: us@x.com}}\n"
        f"kind: sql_database\nconnection: {connection}\n{rest}\n"
    )


def _source(project: Project, system: str = "shop") -> SqlDatabase:
    home = settings()
    return SqlDatabase(declare(home.project_dir / FOLDER / f"{system}.yml").resolved(home), home)


def _pg(address: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(address, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


NASTY = """
    create type mood as enum ('calm', 'cross');
    create type place as (street text, number int);
    create domain positive as int check (value > 0);
    create domain label as text;
    create domain price as numeric(8, 3);
    create domain moods as mood[];
    create extension if not exists citext;
    create table values_of_every_kind (
        id uuid primary key, feeling mood, at_place place, n positive, l label, p price, ms moods,
        tags text[], grid int[][], prices numeric(6, 2)[], ids uuid[], days date[], docs jsonb[],
        flat real, ratio double precision, loose numeric, big numeric(30, 4), cash money,
        doc json, docb jsonb, raw bytea, span interval, address inet, net cidr, mac macaddr,
        r int4range, tr tstzrange, bits bit(4), vb bit varying, x xml, ts tsvector, pt point,
        clock time, zoned_clock timetz, instant timestamptz, local timestamp, day date,
        ci citext, ch char(5), tiny "char", o oid, nm name, flag boolean, small smallint,
        doubled int generated always as (n * 2) stored
    );
    insert into values_of_every_kind values (
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'cross', row('Elm "St"', 5), 7, 'l', 1.125,
        '{calm,cross}', array['a', null, 'ä,"b'], '{{1,2},{3,4}}', '{1.50,-2}',
        '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}', '{2017-01-01,infinity}', array['{"a": 1}'::jsonb],
        1.1, 0.1::float8 + 0.2, 12.5, 12345678901234567890123456.7891, '$1,234.56',
        '{"b":  1}', '{"b": [1, null]}', '\\x00ff', '1 mon 2 days 03:00', '10.0.0.1', '10.0.0.0/8',
        '08:00:2b:01:02:03', '[1,5)', '[2017-01-01 00:00+02,)', b'1010', b'1', '<a>1</a>',
        'a fat cat', '(1,2)', '24:00', '12:00+02', '2017-01-01 10:00:00.123456+02',
        '2017-01-01 10:00:00', '0044-03-15 BC', 'CiText', 'ab', 'z', 4000000000, 'nm', true, -5
    );
    insert into values_of_every_kind (id) values ('b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12');
"""


def test_postgresql_lands_every_kind_of_value_exactly(project: Project, postgres: str) -> None:
    address = database(postgres, "every_kind")
    _pg(address, NASTY)
    _declare(project, address, 'include: ["*"]')
    load = project.load()["values_of_every_kind"]
    assert counts_of(load) == (2, 2, 0, 0)
    landed = project.rows("raw_shop.values_of_every_kind", order="id")
    assert landed[0] | {"flat": None} == {
        "id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "feeling": "cross",
        "at_place": '("Elm ""St""",5)',
        "n": 7,
        "l": "l",
        "p": Decimal("1.125"),
        "ms": ["calm", "cross"],
        "tags": ["a", None, 'ä,"b'],
        "grid": "[[1,2],[3,4]]",
        "prices": ["1.50", "-2.00"],
        "ids": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
        "days": ["2017-01-01", "infinity"],
        "docs": ['{"a": 1}'],
        "flat": None,
        "ratio": 0.1 + 0.2,
        "loose": Decimal("12.5"),
        "big": Decimal("12345678901234567890123456.7891"),
        "cash": Decimal("1234.56"),
        "doc": '{"b":  1}',
        "docb": '{"b": [1, null]}',
        "raw": b"\x00\xff",
        "span": "1 mon 2 days 03:00:00",
        "address": "10.0.0.1/32",
        "net": "10.0.0.0/8",
        "mac": "08:00:2b:01:02:03",
        "r": "[1,5)",
        "tr": '["2016-12-31 22:00:00+00",)',
        "bits": "1010",
        "vb": "1",
        "x": "<a>1</a>",
        "ts": "'a' 'cat' 'fat'",
        "pt": "(1,2)",
        "clock": "24:00:00",
        "zoned_clock": "12:00:00+02",
        "instant": datetime(2017, 1, 1, 8, 0, 0, 123456),
        "local": datetime(2017, 1, 1, 10),
        "day": landed[0]["day"],
        "ci": "CiText",
        "ch": "ab   ",
        "tiny": "z",
        "o": "4000000000",
        "nm": "nm",
        "flag": True,
        "small": -5,
        "doubled": 14,
    }
    assert all(value is None for name, value in landed[1].items() if name != "id")
    before = project.versions()
    assert project.load()["values_of_every_kind"].status == "unchanged"
    assert project.versions() == before


def test_postgresql_values_that_delta_has_no_type_for_stay_text_or_are_quarantined(
    project: Project, postgres: str
) -> None:
    address = database(postgres, "no_type")
    _pg(
        address,
        "create table ends (id int primary key, until timestamptz, on_day date, far timestamp,"
        " n numeric(6, 2), loose numeric, many numeric(50, 20), ok timestamp, grid int[]);"
        "insert into ends values (1, 'infinity', '-infinity', '294276-12-31', 'NaN', 1e-30,"
        " 1234567890123456789012345678.5, '2017-01-01', '{{1},{2}}'),"
        " (2, '2017-01-01 00:00+01', '2017-01-01', '2017-01-01', 1.5, 2, 2, '2017-01-02', '{1}');",
    )
    _declare(project, address, 'include: ["*"]')
    assert counts_of(project.load()["ends"]) == (2, 2, 0, 0)
    assert project.rows("raw_shop.ends", order="id")[0] == {
        "id": 1,
        "until": "infinity",
        "on_day": "-infinity",
        "far": "294276-12-31 00:00:00",
        "n": "NaN",
        "loose": "0.000000000000000000000000000001",
        "many": "1234567890123456789012345678.50000000000000000000",
        "ok": datetime(2017, 1, 1),
        "grid": "[[1],[2]]",
    }
    assert project.load()["ends"].status == "unchanged"
    # What a column's type is, is settled by then.
    _pg(address, "insert into ends (id, ok) values (3, 'infinity')")
    assert counts_of(project.load()["ends"]) == (3, 0, 1, 2)
    (row,) = project.rows("quarantine_shop.ends", "_reason")
    assert "ok: 'infinity' is not timestamp" in row["_reason"]
    _declare(project, address, "tables:\n  soon: {table: ends, columns: {ok: text}}")
    project.load()
    assert [r["ok"] for r in project.rows("raw_shop.soon", "ok", "id")][2] == "infinity"


SCHEMAS = """
    create schema sales; create schema "Ünï code"; create schema hr;
    create table public.orders (id int primary key, note text);
    create table sales.orders (id int primary key, note text);
    create table hr.people (name text, born date);
    create table "Ünï code"."Order %(x)s: ""Big"" Lines" (
        "select" int primary key, "Größe %" text, "数量" int, "价格" int, "a.b" text, "_load_id" int
    );
    create table "Ünï code"."空" (id int);
    create table nothing ();
    create table parent (id int primary key); create table child (more int) inherits (parent);
    create table events (id int, on_day date not null, primary key (id, on_day))
        partition by range (on_day);
    create table events_2017 partition of events
        for values from ('2017-01-01') to ('2018-01-01');
    create table by_unique (a int not null, b int not null, c int unique, unique (a, b));
    create unique index on by_unique (a) where b > 0;
    create view order_notes as select id, note from public.orders;
    create materialized view note_count as select count(*) as notes, avg(id) as mean from orders;
    insert into public.orders values (1, 'public');
    insert into sales.orders values (1, 'sales'), (2, 'sales');
    insert into hr.people values ('A', '2000-01-01'), ('A', '2000-01-01');
    insert into "Ünï code"."Order %(x)s: ""Big"" Lines" values (1, '100%', 2, 3, 'x', 4);
    insert into parent values (1); insert into child values (1, 2);
    insert into events values (1, '2017-05-05');
    insert into by_unique values (1, 2, null);
    refresh materialized view note_count;
    comment on table public.orders is 'What was ordered.';
"""


def test_a_whole_database_lands_by_pattern_whatever_its_names(
    project: Project, postgres: str
) -> None:
    address = database(postgres, "schemas")
    _pg(address, SCHEMAS)
    rest = (
        'include: ["*.*"]\nexclude: ["hr.peo*", "nothing"]\n'
        "tables:\n  parents: {table: parent, write: append}"
    )
    _declare(project, address, rest)
    loads = project.load()
    assert {name: load.status for name, load in loads.items() if load.status == "failed"} == {}
    assert {name: load.counts.accepted for name, load in loads.items()} == {
        "parents": 2,
        "by_unique": 1,
        "child": 1,
        "events": 1,
        "note_count": 1,
        "order_notes": 1,
        "orders": 1,
        "sales__orders": 2,
        "order_x_s_big_lines": 1,
        "x": 0,
    }
    (line,) = project.rows("raw_shop.order_x_s_big_lines")
    assert list(line.values()) == [1, "100%", 2, 3, "x", 4]
    assert next(iter(line)) == "select"
    assert len(set(line)) == 6
    assert project.rows("raw_shop.order_notes") == [{"id": 1, "note": "public"}]
    before = project.versions()
    assert {load.status for load in project.load().values()} == {"unchanged"}
    assert project.versions() == before
    specs = _source(project).tables
    assert {n: (s.write, s.primary_key) for n, s in specs.items()} == {
        "parents": ("append", ()),
        "by_unique": ("merge", ("a", "b")),
        "child": ("replace", ()),
        "events": ("merge", ("id", "on_day")),
        "note_count": ("replace", ()),
        "order_notes": ("replace", ()),
        "orders": ("merge", ("id",)),
        "sales__orders": ("merge", ("id",)),
        "order_x_s_big_lines": ("merge", ("select",)),
        "x": ("replace", ()),
    }


def test_keys_of_any_type_are_merged_by(project: Project, postgres: str) -> None:
    address = database(postgres, "keys")
    keys = {
        "raw": ("bytea", "'\\x00ff'", "'\\x01'"),
        "at": ("timestamptz", "'2017-01-01 00:00+02'", "'2017-01-02'"),
        "big": ("numeric(20, 0)", "18446744073709551615", "1"),
        "loose": ("numeric", "1.5", "2"),
        "fraction": ("double precision", "0.1", "'NaN'"),
        "words": ("text", "'ä'", "''"),
        "id": ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "gen_random_uuid()"),
        "flag": ("boolean", "true", "false"),
    }
    for name, (kind, one, two) in keys.items():
        _pg(address, f"create table by_{name} (k {kind} primary key, n int)")
        _pg(address, f"insert into by_{name} values ({one}, 1), ({two}, 1)")
    _declare(project, address, 'include: ["*"]')
    assert {counts_of(load) for load in project.load().values()} == {(2, 2, 0, 0)}
    for name, (_, one, _) in keys.items():
        _pg(address, f"update by_{name} set n = 2 where k = {one}")
    loads = {name: (load.error, counts_of(load)) for name, load in project.load().items()}
    assert loads == {f"by_{name}": (None, (2, 1, 0, 1)) for name in keys}
    for name in keys:
        assert [row["n"] for row in project.rows(f"raw_shop.by_{name}", "n", "n")] == [1, 2]


def test_a_table_of_1600_columns(project: Project, postgres: str) -> None:
    address = database(postgres, "wide")
    columns = ", ".join(f"c{i} int" for i in range(1600))
    _pg(address, f"create table wide ({columns}); insert into wide (c0, c1599) values (1, 2)")
    _declare(project, address, 'include: ["wide"]')
    assert counts_of(project.load()["wide"]) == (1, 1, 0, 0)
    assert project.rows("raw_shop.wide", "c0, c1598, c1599") == [
        {"c0": 1, "c1598": None, "c1599": 2}
    ]


CURSORS = """
    create table a (id int primary key, updated_at timestamptz not null, created_at timestamp);
    create table b (id int primary key, created_at timestamp not null);
    create table c (id serial primary key, last_update timestamp);
    create table d (id int primary key, "ModifiedDate" timestamp not null);
    create table e (updated_at timestamp not null);
    create table f (id int primary key, updated_at timestamp not null, modified timestamp not null);
"""


def test_a_cursor_is_chosen_only_where_it_cannot_miss_a_change(
    project: Project, postgres: str
) -> None:
    address = database(postgres, "cursors")
    _pg(address, CURSORS)
    _declare(project, address, 'include: ["*"]')
    source = _source(project)
    assert {name: spec.cursor for name, spec in source.tables.items()} == {
        "a": "updated_at",
        "b": None,
        "c": None,
        "d": "modified_date",
        "e": None,
        "f": None,
    }
    told = source.check()
    assert told[0].startswith("postgresql://tarn:***@127.0.0.1")
    assert "mode: cdc is possible: wal_level is logical" in told[1]
    assert [loads(source.tables[name]) for name in "abe"] == [
        "reads rows from the highest updated_at less 1h on; updates rows by id, adds new ones",
        "reads everything; updates rows by id, adds new ones",
        "reads everything; takes the place of what was there",
    ]


def test_rows_that_come_late_or_from_the_future_are_not_missed(
    project: Project, postgres: str
) -> None:
    address = database(postgres, "late")
    _pg(
        address,
        "create table orders (id int primary key, updated_at timestamp not null);"
        "insert into orders values (1, '2017-01-01 10:00'), (2, '2017-01-01 12:00'),"
        " (3, '9999-12-31')",
    )
    _declare(project, address, "tables:\n  orders: {cursor: updated_at, overlap: 90m}")
    assert counts_of(project.load()["orders"]) == (3, 3, 0, 0)
    _pg(address, "insert into orders values (4, '2017-01-01 10:30'), (5, '2017-01-01 13:00')")
    assert counts_of(project.load()["orders"]) == (4, 2, 0, 2)
    assert counts_of(project.load()["orders"]) == (3, 0, 0, 3)
    assert len(project.rows("raw_shop.orders")) == 5


# A shape like sakila's, and what old MySQL servers hold.
SAKILA = (
    """create table film (
        film_id smallint unsigned not null auto_increment primary key, title varchar(128) not null,
        release_year year, rental_rate decimal(4,2) not null default 4.99,
        rating enum('G','PG','R') default 'G', features set('Trailers','Deleted Scenes'),
        is_new tinyint(1), flag bit(1), flags bit(10), all_flags bit(64),
        last_update timestamp not null default current_timestamp on update current_timestamp
    ) charset latin1""",
    """create table odd (
        id bigint unsigned primary key, zero date, zero_at datetime, span time(3), exact double,
        rough float, doc json, shape geometry, raw blob, bin binary(3), txt longtext,
        at datetime(6), stamp timestamp null, huge decimal(65,30), fill int(6) zerofill
    ) charset utf8mb4""",
    "create table `Order Details` (`Order ID` int, `Größe` varchar(9), `100%%` int, `key` int)",
    "create view film_titles as select film_id, upper(title) as title from film",
    "create table empty (id int primary key, at datetime)",
    """insert into film (title, release_year, features, is_new, flag, flags, all_flags, last_update)
        values ('Amélie', 2001, 'Trailers,Deleted Scenes', 2, b'1', b'1000000001',
                b'1111111111111111111111111111111111111111111111111111111111111111',
                '2017-01-01 12:00:00')""",
    """insert into odd values (18446744073709551615, '2017-01-01', '2017-01-01', '-838:59:59.5',
        0.1e0 + 0.2e0, 16777217, '{"a": [1, "ä"]}', st_geomfromtext('POINT(1.5 -2)', 4326),
        x'00ff', 'a', '😀', '2017-01-01 10:00:00.123456', '2017-01-01 12:00:00', 1.5, 42)""",
    "insert into odd (id, zero, zero_at) values (1, '0000-00-00', '2017-01-01'),"
    " (2, '2017-02-00', '0000-00-00 00:00:00')",
    "insert into `Order Details` values (1, '100%', 1, 2), (1, '100%', 1, 2)",
)


def test_mariadb_lands_exactly_and_zero_dates_are_quarantined(
    project: Project, mariadb: str
) -> None:
    address = mariadb_database(mariadb, "sakila", *SAKILA)
    _declare(project, address, 'include: ["*"]')
    loads = project.load()
    assert {name: counts_of(load) for name, load in loads.items()} == {
        "empty": (0, 0, 0, 0),
        "film": (1, 1, 0, 0),
        "film_titles": (1, 1, 0, 0),
        "odd": (3, 1, 2, 0),
        "order_details": (2, 2, 0, 0),
    }
    assert project.rows("raw_shop.film") == [
        {
            "film_id": 1,
            "title": "Amélie",
            "release_year": 2001,
            "rental_rate": Decimal("4.99"),
            "rating": "G",
            "features": "Trailers,Deleted Scenes",
            "is_new": 2,
            "flag": True,
            "flags": 513,
            "all_flags": Decimal(2**64 - 1),
            "last_update": datetime(2017, 1, 1, 7),
        }
    ]
    assert project.rows("raw_shop.odd") == [
        {
            "id": Decimal(2**64 - 1),
            "zero": date(2017, 1, 1),
            "zero_at": datetime(2017, 1, 1),
            "span": "-838:59:59.500",
            "exact": 0.1 + 0.2,
            "rough": 16777216.0,
            "doc": '{"a": [1, "ä"]}',
            "shape": "SRID=4326;POINT(1.5 -2)",
            "raw": b"\x00\xff",
            "bin": b"a\x00\x00",
            "txt": "😀",
            "at": datetime(2017, 1, 1, 10, 0, 0, 123456),
            "stamp": datetime(2017, 1, 1, 7),
            "huge": "1.500000000000000000000000000000",
            "fill": 42,
        }
    ]
    reasons = {row["_reason"] for row in project.rows("quarantine_shop.odd", "_reason")}
    assert any("zero: '0000-00-00' is not date" in reason for reason in reasons)
    assert any("zero_at: '0000-00-00 00:00:00' is not timestamp" in reason for reason in reasons)
    assert project.types("raw_shop.empty")["at"] == "timestamp[us]"
    assert _source(project).tables["film"].cursor == "last_update"
    before = project.versions()
    assert {load.status for load in project.load().values()} == {"unchanged"}
    assert project.versions() == before
    mariadb_sql(address, "update film set title = 'Amelie'")
    assert counts_of(project.load()["film"]) == (1, 1, 0, 0)


def test_zero_dates_stay_text_where_the_declaration_says_so(project: Project, mariadb: str) -> None:
    address = mariadb_database(
        mariadb, "zero", "create table t (d date)", "insert into t values ('0000-00-00')"
    )
    _declare(project, address, "tables:\n  t: {columns: {d: text}}")
    assert counts_of(project.load()["t"]) == (1, 1, 0, 0)
    assert project.rows("raw_shop.t") == [{"d": "0000-00-00"}]


# A shape like chinook's, and SQLite's freedom.
CHINOOK = """
    create table "Album" ("AlbumId" integer primary key, "Title" nvarchar(160) not null,
        "Price" numeric(10,2), "UpdatedAt" datetime);
    create table loose (a, b int, c real, d text, e blob, f decimal(10,2), g);
    create table pairs (k text not null, n int not null, v text, primary key (k, n)) without rowid;
    create table "Grüße ""x"" y" ("select" int);
    create view totals as
        select count(*) as albums, max("Price") / 4.0 as mean, 'x' as t from "Album";
    create view broken as select * from gone;
    create table gone (x int); drop table gone;
    insert into "Album" values (1, 'Ümit', 9.99, '2017-01-01 10:00:00'), (2, 'B', 10, null);
    insert into loose values (1, 1, 0.1 + 0.2, 'x', x'00ff', 1.25, 9007199254740993),
        (2.5, 9007199254740993, 3, 0.1 + 0.2, x'01', 2, 1.5), ('s', 3, 1, x'00', x'', null, 2);
    insert into pairs values ('a', 1, 'x'), ('a', 2, null);
"""


def test_sqlite_lands_exactly_whatever_type_its_values_have(project: Project) -> None:
    project.sql(CHINOOK)
    _declare(project, "sqlite:///shop.db", 'include: ["*"]')
    loads = project.load()
    broken = loads.pop("broken")
    assert "cannot describe the table: no such table: main.gone" in str(broken.error)
    assert {name: counts_of(load) for name, load in loads.items()} == {
        "album": (2, 2, 0, 0),
        "loose": (3, 3, 0, 0),
        "pairs": (2, 2, 0, 0),
        "gr_e_x_y": (0, 0, 0, 0),
        "totals": (1, 1, 0, 0),
    }
    assert project.rows("raw_shop.loose", order="b") == [
        {"a": "1", "b": 1, "c": 0.1 + 0.2, "d": "x", "e": b"\x00\xff", "f": Decimal("1.25"),
         "g": "9007199254740993"},
        {"a": "s", "b": 3, "c": 1.0, "d": "x'00'", "e": b"", "f": None, "g": "2"},
        {"a": "2.5", "b": 9007199254740993, "c": 3.0, "d": "0.3", "e": b"\x01",
         "f": Decimal("2.00"), "g": "1.5"},
    ]  # fmt: skip
    assert project.rows("raw_shop.totals") == [{"albums": 2, "mean": 2.5, "t": "x"}]
    assert _source(project).tables["pairs"].primary_key == ("k", "n")
    assert {load.status for load in project.load().values()} == {"unchanged", "failed"}


def test_what_is_offered_can_be_declared(project: Project, postgres: str) -> None:
    address = database(postgres, "offered")
    _pg(address, SCHEMAS.replace("create schema hr;", "create schema hr;" + CURSORS))
    _declare(project, address, 'include: ["*"]')
    offered = {each.name: each for each in _source(project).offered()}
    assert offered["orders"].description == "What was ordered."
    assert offered["orders"].spec == {
        "schema": "public",
        "primary_key": ["id"],
        "write": "merge",
    }
    assert offered["orders"].columns == {"id": "integer", "note": "text"}
    assert offered["a"].spec["cursor"] == "updated_at"
    lines = [f"  {each.name}: {json.dumps(each.spec)}" for each in offered.values()]
    _declare(project, address, "tables:\n" + "\n".join(lines))
    assert {load.status for load in project.load().values()} == {"loaded", "unchanged"}


def _error(project: Project) -> str:
    (result,) = project.results()
    assert result.failed
    errors = {str(table.error) for table in result.tables if table.error}
    assert len(errors) == 1
    error = errors.pop()
    for secret in (PASSWORD, "p%40ss"):
        assert secret not in error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("rest", ['include: ["*"]', "tables: {orders: {}}"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda url: url.replace("p%40ss", "wrong"), "password authentication failed"),
        (lambda url: url.replace("127.0.0.1", "nowhere.invalid"), "cannot open postgresql"),
        (lambda url: url.replace("refused", "absent"), 'database "absent" does not exist'),
        (lambda url: url.replace("postgresql", "oracle").replace("refused", "x"), "install the"),
        (lambda url: url.replace("postgresql", "nosql"), "install the driver"),
        (lambda url: "nonsense", "connection is no database address"),
    ],
)
def test_a_database_that_cannot_be_opened_says_why_once(
    project: Project, postgres: str, change: Callable[[str], str], told: str, rest: str
) -> None:
    address = f"{postgres}/refused"
    if not _pg(f"{postgres}/postgres", "select 1 from pg_database where datname = 'refused'"):
        database(postgres, "refused")
    _declare(project, change(address), rest)
    error = _error(project)
    assert told in error
    assert "ingestion/shop.yml:5" in error


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda url: url.replace("p%40ss", "wrong"), "Access denied for user 'tarn'"),
        (lambda url: url + "_absent", "Unknown database 'refused_absent'"),
        (lambda url: url.removesuffix("/refused"), "the address names no database"),
        (lambda url: url.replace("127.0.0.1", "nowhere.invalid"), "Can't connect to MySQL server"),
    ],
)
def test_a_mariadb_that_cannot_be_opened_says_why(
    project: Project, mariadb: str, change: Callable[[str], str], told: str
) -> None:
    mariadb_sql(mariadb, "create database if not exists refused")
    _declare(project, change(f"{mariadb}/refused"), 'include: ["*"]')
    assert told in _error(project)


def test_one_table_that_cannot_be_read_does_not_stop_the_others(
    project: Project, postgres: str
) -> None:
    address = database(postgres, "rights")
    _pg(
        address,
        "create table ours (id int primary key); create table theirs (id int primary key);"
        "insert into ours values (1); create role reader login password 'reading';"
        "grant select on ours to reader;"
        "create materialized view later as select 1 as x with no data;"
        "grant select on later to reader",
    )
    reader = address.replace(f"tarn:{address.split(':')[2].split('@')[0]}@", "reader:reading@")
    _declare(project, reader, 'include: ["*"]\ntables:\n  gone: {write: append}')
    loads = project.load()
    assert loads["ours"].status == "loaded"
    assert "permission denied for table theirs" in str(loads["theirs"].error)
    assert "has not been populated" in str(loads["later"].error)
    assert "the database has no table 'gone'" in str(loads["gone"].error)
    found = {each.name: each.error for each in check(_source(project).declared, settings()).tables}
    assert "permission denied for table theirs" in str(found["theirs"])
    assert found["ours"] is None


def _slowly(address: str) -> None:
    """A view that sends two million rows, the last ones after others were sent."""
    _pg(
        address,
        "create table big (id int primary key, text text);"
        "insert into big select i, repeat('x', 100) from generate_series(1, 500000) i",
    )


def test_a_connection_dropped_in_mid_table_writes_nothing(
    project: Project, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = database(postgres, "dropped")
    _slowly(address)
    _declare(project, address, 'include: ["*"]')
    ended: list[int] = []

    def end_it(self: Any, batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.num_rows and not ended:
            kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            ended.append(_pg(address, f"{kill} where query like 'COPY%'")[0][0])
        return batch

    with monkeypatch.context() as patched:
        patched.setattr(
            "tarn.ingestion.sources.sql_database.postgres.PostgresReading._checked", end_it
        )
        error = _error(project)
    assert ended == [1]
    assert "reading public.big ended: " in error
    assert project.lake.table("raw_shop.big") is None
    assert counts_of(project.load()["big"]) == (500_000, 500_000, 0, 0)


def test_a_mariadb_connection_killed_in_mid_table_writes_nothing(
    project: Project, mariadb: str
) -> None:
    address = mariadb_database(
        mariadb,
        "killed",
        "create table big (id int primary key, t varchar(200))",
        "insert into big select seq, repeat('x', 200) from seq_1_to_400000",
    )
    _declare(project, address, 'include: ["*"]')

    def kill() -> None:
        for _ in range(1000):
            running = "select id from information_schema.processlist where info like '%`big`%'"
            if found := mariadb_sql(mariadb, running + " and id <> connection_id()"):
                mariadb_sql(mariadb, f"kill {found[0][0]}")
                return

    killer = Thread(target=kill)
    killer.start()
    load = project.load()["big"]
    killer.join()
    assert load.status == "failed"
    assert "reading killed.big ended: " in str(load.error)
    assert project.lake.table("raw_shop.big") is None
    assert counts_of(project.load()["big"]) == (400_000, 400_000, 0, 0)


def test_a_locked_table_is_told_when_the_server_gives_up(project: Project, postgres: str) -> None:
    address = database(postgres, "locked")
    _pg(address, "create table t (id int primary key); insert into t values (1)")
    _pg(address, "alter role tarn in database locked set lock_timeout = '200ms'")
    _declare(project, address, 'include: ["*"]')
    with psycopg.connect(address) as other:
        other.execute("lock table t in access exclusive mode")
        assert "canceling statement due to lock timeout" in _error(project)
    assert counts_of(project.load()["t"]) == (1, 1, 0, 0)


def test_a_database_opened_for_nothing_else_is_read_only_in_sqlite(project: Project) -> None:
    with closing(sqlite3.connect(project.path / "shop.db")) as connection:
        connection.execute("create table t (id int primary key)")
    Path(project.path / "shop.db").chmod(0o444)
    _declare(project, "sqlite:///shop.db", 'include: ["t"]')
    assert project.load()["t"].status == "unchanged"
    _declare(project, "sqlite:///absent.db", 'include: ["t"]')
    assert "no database file absent.db" in _error(project)


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ("tables: {}", "name tables under tables:, or patterns of them under include:"),
        ('tables: {t: {}}\nexclude: ["a"]', "there is no include"),
        ("tables: {t: {overlap: 1y}}", "overlap"),
        ("tables: {t: {write: replace, overlap: 1h}}", "remove the cursor"),
        ('include: ["a.b.c"]', "include"),
    ],
)
def test_mistakes_in_a_declaration_are_told(project: Project, rest: str, told: str) -> None:
    _declare(project, "sqlite:///shop.db", rest)
    with pytest.raises(TarnError, match=told):
        declare(project.path / "ingestion/shop.yml")


@pytest.mark.parametrize("rest", ["tables:\n  t:", 'include: ["main.*"]', 'include: ["*.t"]'])
def test_little_need_be_said(project: Project, rest: str) -> None:
    project.sql("create table t (a int primary key); insert into t values (1)")
    _declare(project, "sqlite:///shop.db", rest)
    schema = json.loads(schema_text())
    jsonschema.validate(yaml.safe_load((project.path / "ingestion/shop.yml").read_text()), schema)
    assert counts_of(project.load()["t"]) == (1, 1, 0, 0)
    assert _source(project).tables["t"].write == "merge"


def test_a_merge_without_any_key_is_told(project: Project) -> None:
    project.sql("create table t (a int)")
    _declare(project, "sqlite:///shop.db", "tables: {t: {write: merge}}")
    assert "the database knows no key of the table; add primary_key" in _error(project)
