"""A PostgreSQL database followed by its log, against a real server."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from threading import Event
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from tarn.errors import TarnError
from tarn.ingestion.declarations import declare
from tarn.ingestion.engine import ingest
from tarn.ingestion.options import Options
from tarn.ingestion.sources import cdc
from tarn.ingestion.sources.cdc import changes, server, spool
from tarn.settings import settings
from tests.engine.conftest import ROOT
from tests.engine.ingesting import Project, counts_of, project
from tests.engine.postgres import ESCAPED, USER, database, postgres
from tests.engine.test_how_to import BLOCK

__all__ = ["postgres", "project"]

ORDERS = "create table orders (id int primary key, item text, qty int)"


@pytest.fixture
def shop(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    """A database of its own; its slots end with the test, as the server has few."""
    address = database(postgres, f"shop_{uuid4().hex}")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(ORDERS)
        yield connection
        connection.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where database = current_database() and not active"
        )


def address_of(shop: psycopg.Connection[Any], postgres: str) -> str:
    return f"{postgres}/{shop.info.dbname}"


@pytest.fixture
def followed(project: Project, shop: psycopg.Connection[Any], postgres: str) -> Project:
    follow(project, address_of(shop, postgres), "  orders: {primary_key: [id], write: merge}")
    return project


def follow(project: Project, address: str, tables: str) -> None:
    project.declare("shop", "sql_database", f"{address}\nmode: cdc", tables)


def same(project: Project, shop: psycopg.Connection[Any], table: str = "orders") -> None:
    """The lake's table has the rows of the source's, told by two independent queries."""
    rows = shop.execute(f"select * from {table} order by id").fetchall()
    landed = [tuple(row.values()) for row in project.rows(f"raw_shop.{table}", order="id")]
    # Not compared as lists: pytest would take minutes to show how long texts differ.
    assert not [pair for pair in zip_longest(landed, rows) if pair[0] != pair[1]][:3]


def test_a_table_is_read_whole_once_and_then_followed(
    followed: Project, shop: psycopg.Connection[Any]
) -> None:
    shop.execute("insert into orders values (1, 'ä', 1), (2, 'b', null), (3, '', 3)")
    assert counts_of(followed.load()["orders"]) == (3, 3, 0, 0)
    same(followed, shop)
    before = followed.versions()
    assert followed.load()["orders"].status == "unchanged"
    assert followed.versions() == before
    shop.execute("insert into orders values (4, 'd', 4)")
    shop.execute("update orders set qty = qty + 1")
    shop.execute("delete from orders where id = 1")
    load = followed.load()["orders"]
    # One insert, four updates of which two are superseded, one delete.
    assert counts_of(load) == (6, 4, 0, 2)
    assert "behind" in load.notes[-1]
    same(followed, shop)
    assert followed.load()["orders"].status == "unchanged"


def test_keys_that_move_come_back_and_are_emptied(
    followed: Project, shop: psycopg.Connection[Any]
) -> None:
    shop.execute("insert into orders select n, 'x', n from generate_series(1, 20) as n")
    followed.load()
    shop.execute("update orders set id = id + 100 where id <= 3")
    shop.execute("delete from orders where id = 4; insert into orders values (4, 'again', 0)")
    shop.execute("update orders set id = 1 where id = 20")
    with shop.transaction():
        shop.execute("insert into orders values (50, 'brief', 0); delete from orders where id = 50")
    followed.load()
    same(followed, shop)
    shop.execute("insert into orders values (60, 'before', 0); truncate orders")
    shop.execute("insert into orders values (5, 'after', 0), (61, 'after', 0)")
    # The truncation deletes the rows that the lake has; what it had not yet is superseded.
    assert counts_of(followed.load()["orders"]) == (23, 21, 0, 2)
    same(followed, shop)


def test_a_row_that_is_deleted_softly_stays_as_it_was(
    project: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    orders = "  orders: {primary_key: [id], write: merge, deletes: soft}"
    follow(project, address_of(shop, postgres), orders)
    shop.execute("insert into orders select n, 'x', n from generate_series(1, 4) as n")
    project.load()
    assert project.types("raw_shop.orders")["_deleted_at"] == "timestamp[us]"
    shop.execute("update orders set qty = 20 where id = 2; delete from orders where id < 3")
    shop.execute("insert into orders values (5, 'y', 5); delete from orders where id = 5")
    project.load()
    rows = project.rows("raw_shop.orders", "id, qty, _deleted_at is not null as gone", "id")
    assert [tuple(row.values()) for row in rows] == [
        (1, 1, True),
        (2, 20, True),
        (3, 3, False),
        (4, 4, False),
        (5, 5, True),
    ]
    shop.execute("insert into orders values (1, 'again', 0); truncate orders")
    shop.execute("insert into orders values (2, 'again', 0)")
    project.load()
    rows = project.rows("raw_shop.orders", "id, qty, _deleted_at is not null as gone", "id")
    assert [row["gone"] for row in rows] == [True, False, True, True, True]
    (deleted,) = project.rows("raw_shop.orders", "max(_deleted_at) as at")
    (now,) = shop.execute("select now() at time zone 'UTC'").fetchone() or (datetime.min,)
    assert abs(now - deleted["at"]).total_seconds() < 3600


EVERY_TYPE = """
    create type mood as enum ('calm', 'wild');
    create domain cents as numeric(12, 2);
    create table every (
        id uuid primary key, small smallint, big bigint, exact numeric(10, 2), loose numeric,
        priced cents, ratio double precision, single real, name text, code char(3), ok boolean,
        day date, at timestamp, instant timestamptz, clock time, doc jsonb, raw json, feeling mood,
        tags int[], words text[], flags boolean[], bytes bytea, span interval, address inet,
        "Größe in %" int, twice int generated always as (small * 2) stored
    );
    insert into every values (
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 2, 9223372036854775807, 1.25, 3.14159, 1.1, 0.1,
        0.1, E'ä"''\\n,{}', 'ab', true, '2017-01-01', '2017-01-01 10:00:00.123456',
        '2017-01-01 10:00:00+02', '12:30', '{"a": [1]}', '{"b":  2}', 'wild', '{1,2,null}',
        array['a b', 'x"y', null, '', 'NULL', 'ü\\z'], '{t,f}', '\\x00ff', '1 day', '10.0.0.1/24', 7
    );
    insert into every (id, ratio, clock) values
        ('b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'infinity', '12:30:00.5');
"""


def test_the_log_gives_the_same_values_as_a_query(
    project: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    shop.execute(EVERY_TYPE)
    shop.execute(f'alter database "{shop.info.dbname}" set timezone = "Asia/Tokyo"')
    shop.execute(f'alter database "{shop.info.dbname}" set datestyle = "German"')
    every = "{primary_key: [id], table: every, write: merge}"
    follow(project, address_of(shop, postgres), f"  every: {every}")
    project.load()
    types, snapshot = project.types("raw_shop.every"), project.rows("raw_shop.every", order="id")
    shop.execute("update every set id = ('c' || substr(id::text, 2))::uuid where small = 2")
    shop.execute("update every set id = ('d' || substr(id::text, 2))::uuid where small is null")
    assert counts_of(project.load()["every"]) == (4, 4, 0, 0)
    logged = project.rows("raw_shop.every", order="id")
    assert [row.pop("id")[0] for row in logged] == ["c", "d"]
    assert [row.pop("id")[0] for row in snapshot] == ["a", "b"]
    assert logged == snapshot
    assert project.types("raw_shop.every") == types
    assert "twice" not in types


def test_a_large_value_that_is_not_in_the_log_is_kept(
    followed: Project, shop: psycopg.Connection[Any]
) -> None:
    shop.execute("alter table orders alter item set storage external")
    shop.execute(
        "insert into orders select n, repeat('ab', 9000) || n, n from generate_series(1, 4) as n"
    )
    followed.load()
    shop.execute("update orders set qty = -1")
    shop.execute("update orders set id = 30 where id = 3")
    shop.execute("insert into orders select 5, item || 'x', 0 from orders where id = 1")
    shop.execute("update orders set qty = 5 where id = 5")
    shop.execute(
        "update orders set item = null where id = 4; update orders set qty = 6 where id = 4"
    )
    followed.load()
    same(followed, shop)


def test_a_row_in_quarantine_leaves_the_state_before_and_heals(
    project: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    orders = "  orders: {primary_key: [id], write: merge, rules: ['qty >= 0']}"
    follow(project, address_of(shop, postgres), orders)
    shop.execute("alter table orders alter item set storage external")
    shop.execute("insert into orders values (1, repeat('ab', 9000), 1), (2, 'b', 2)")
    project.load()
    shop.execute("update orders set item = repeat('cd', 9000), qty = -1 where id = 1")
    shop.execute("insert into orders values (3, 'c', -3)")
    assert counts_of(project.load()["orders"]) == (2, 0, 2, 0)
    assert [row["qty"] for row in project.rows("raw_shop.orders", order="id")] == [1, 2]
    assert project.load()["orders"].status == "unchanged"
    # The log does not repeat the large value, and the lake has never seen it.
    shop.execute("update orders set qty = 10")
    project.load()
    same(project, shop)
    shop.execute("update orders set qty = -1 where id = 1")
    project.load()
    shop.execute("delete from orders")
    project.load()
    same(project, shop)


BEATEN = (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation)
"""What befalls a writer when another was first."""


def writing(address: str, seed: int, until: Event) -> None:
    """Random inserts, updates, deletes, moves of keys, in transactions of random size."""
    chance = random.Random(seed)
    with psycopg.connect(address, autocommit=True) as connection:
        while not until.is_set():
            with suppress(*BEATEN), connection.transaction():
                for _ in range(chance.randint(1, 8)):
                    connection.execute(*_statement(chance))


def _statement(chance: random.Random) -> tuple[LiteralString, dict[str, Any]]:
    statements: tuple[LiteralString, ...] = (
        "insert into orders values (%(id)s, %(item)s, %(qty)s) on conflict (id) do nothing",
        "insert into orders values (%(id)s, %(item)s, %(qty)s) on conflict (id) do update"
        " set qty = excluded.qty, item = excluded.item",
        "update orders set qty = %(qty)s where id = %(id)s",
        "update orders set qty = qty + 1 where id %% 50 = %(id)s %% 50",
        "delete from orders where id = %(id)s",
        "update orders set id = %(to)s where id = %(id)s"
        " and not exists (select 1 from orders where id = %(to)s)",
    )
    values = {"id": chance.randint(1, 300), "to": chance.randint(1, 300)}
    item = "".join(chance.choices("ab", k=4)) * chance.choice((1, 1, 1, 3000))
    return chance.choice(statements), {**values, "item": item, "qty": chance.randint(0, 99)}


@contextmanager
def writers(address: str, seeds: Sequence[int]) -> Iterator[None]:
    """Write at random, each seed in a thread, until the block ends."""
    until = Event()
    with ThreadPoolExecutor(len(seeds)) as pool:
        try:
            done = [pool.submit(writing, address, seed, until) for seed in seeds]
            yield
        finally:
            until.set()
        for each in done:
            each.result()


@pytest.mark.parametrize("identity", ["default", "full"])
def test_a_snapshot_joins_the_log_without_gap_while_others_write(
    followed: Project, shop: psycopg.Connection[Any], postgres: str, identity: str
) -> None:
    shop.execute(f"alter table orders replica identity {identity}".encode())
    shop.execute("alter table orders alter item set storage external")
    shop.execute("insert into orders select n, 'x', n from generate_series(1, 200) as n")
    with writers(address_of(shop, postgres), (1, 2)):
        for _ in range(4):
            assert followed.load()["orders"].error is None
    followed.load()
    same(followed, shop)


KILLS = int(os.environ.get("TARN_CDC_KILLS", "3"))
"""More by hand: TARN_CDC_KILLS=200 pytest -n 0 tests/engine/test_cdc.py -k kill."""


def test_kill_nine_at_random_moments_loses_and_doubles_nothing(
    followed: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    chance = random.Random(KILLS)
    shop.execute("alter table orders alter item set storage external")
    shop.execute("insert into orders select n, 'x', n from generate_series(1, 200) as n")
    killed = 0
    with writers(address_of(shop, postgres), (3,)):
        for _ in range(KILLS):
            load = start(followed)
            moment = chance.choice(MOMENTS)
            killed += kill_at(load, followed.path / moment, chance.choice((0, 0.01, 0.1)))
            shutil.rmtree(followed.path / ".tarn", ignore_errors=True)
    assert killed
    for _ in range(2):
        assert followed.load()["orders"].error is None
    same(followed, shop)


MOMENTS = ("lake/_tarn/cdc", "lake/raw_shop/orders", ".tarn/ingestion", "lake/tarn/loads")
"""What changes there is the sign to kill."""


def start(project: Project) -> subprocess.Popen[bytes]:
    code = "from tarn.ingestion.engine import ingest; print(ingest(['shop']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=project.path, env=environment, stdout=subprocess.DEVNULL
    )


def kill_at(process: subprocess.Popen[bytes], landmark: Path, delay: float) -> bool:
    """Whether the load was killed before it ended."""
    before = _files(landmark)
    while process.poll() is None:
        if _files(landmark) != before:
            time.sleep(delay)
            process.kill()
            break
        time.sleep(0.001)
    return process.wait() == -signal.SIGKILL


def _files(folder: Path) -> dict[str, int]:
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = os.stat(os.path.join(parent, name)).st_mtime_ns
    return found


def test_two_loads_at_once_are_one(
    followed: Project, shop: psycopg.Connection[Any], tmp_path: Path
) -> None:
    shop.execute("insert into orders select n, 'x', n from generate_series(1, 200) as n")
    followed.load()
    shop.execute("update orders set id = id + 1000 where id <= 100")
    loads = [start(followed) for _ in range(2)]
    assert [load.wait(60) for load in loads] == [0, 0]
    same(followed, shop)
    assert followed.load()["orders"].status == "unchanged"


def test_what_another_load_has_committed_meanwhile_is_left_out(
    followed: Project, shop: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from another machine, where no lock keeps it out."""
    shop.execute("insert into orders values (1, 'a', 1)")
    followed.load()
    shop.execute("update orders set qty = 2")
    begun = changes.Changes.open

    def open_late(these: changes.Changes) -> Any:
        monkeypatch.setattr(changes.Changes, "open", begun)
        shop.execute("update orders set qty = 3")
        assert start_unlocked(followed).wait(60) == 0
        return begun(these)

    monkeypatch.setattr(changes.Changes, "open", open_late)
    assert counts_of(followed.load()["orders"])[1] == 0
    same(followed, shop)


def start_unlocked(project: Project) -> subprocess.Popen[bytes]:
    (project.path / "elsewhere").mkdir()
    code = "from tarn.ingestion.engine import ingest; print(ingest(['shop']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TARN_WORK": "elsewhere"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=project.path, env=environment)


def test_a_key_that_moves_to_where_another_row_was_brings_its_own_large_value(
    followed: Project, shop: psycopg.Connection[Any]
) -> None:
    shop.execute("alter table orders alter item set storage external")
    shop.execute(
        "insert into orders select n, repeat(n::text, 9000), n from generate_series(1, 2) as n"
    )
    followed.load()
    shop.execute(
        "insert into orders values (3, repeat('c', 9000), 3); delete from orders where id > 1"
    )
    shop.execute("update orders set id = 3; update orders set qty = 7")
    followed.load()
    same(followed, shop)


def test_a_long_log_is_loaded_in_slices_of_whole_transactions(
    followed: Project, shop: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed.load()
    monkeypatch.setattr(spool, "SLICE_ROWS", 20)
    monkeypatch.setattr(server, "CHANGES_AT_ONCE", 10)
    for start in range(0, 100, 10):
        shop.execute(
            "insert into orders select n, 'x', n from generate_series(%s, %s + 9) as n",
            [start, start],
        )
    shop.execute("update orders set qty = -1 where id < 50")
    before = followed.versions()["raw_shop.orders"]
    assert counts_of(followed.load()["orders"]) == (150, 150, 0, 0)
    assert followed.versions()["raw_shop.orders"] == before + 6
    same(followed, shop)


TWO = "  orders: {primary_key: [id], write: merge}\n  others: {primary_key: [id], write: merge}"


def test_a_table_that_fails_holds_the_slot_and_not_the_other_table(
    project: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    shop.execute("create table others (id int primary key, at date)")
    frozen = TWO.replace("others: {", "others: {contract: {columns: freeze}, ")
    follow(project, address_of(shop, postgres), frozen)
    project.load()
    shop.execute("alter table others add extra int")
    shop.execute("insert into orders values (1, 'a', 1); insert into others values (1, null, 1)")
    for qty in (1, 2):
        shop.execute("update orders set qty = %s", [qty])
        loads = project.load()
        assert (loads["orders"].status, loads["others"].status) == ("loaded", "failed")
        assert "new column extra" in str(loads["others"].error)
        same(project, shop)
    follow(project, address_of(shop, postgres), TWO)
    assert project.load()["orders"].status == "unchanged"
    same(project, shop, "others")
    kept = shop.execute(
        "select pg_current_wal_lsn() - confirmed_flush_lsn from pg_replication_slots"
    )
    assert (kept.fetchone() or (9999,))[0] < 1000


def test_a_table_declared_later_joins_and_one_that_is_not_any_more_leaves(
    project: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    shop.execute("create table others (id int primary key, at date)")
    shop.execute("insert into others values (1, '2017-01-01')")
    address = address_of(shop, postgres)
    orders = TWO.partition("\n")[0]
    follow(project, address, orders)
    project.load()
    shop.execute("insert into orders values (1, 'a', 1); insert into others values (2, null)")
    follow(project, address, TWO)
    loads = project.load()
    assert counts_of(loads["others"]) == (2, 2, 0, 0)
    shop.execute("insert into others values (3, null); delete from others where id = 1")
    assert counts_of(project.load()["others"]) == (2, 2, 0, 0)
    same(project, shop, "others")
    follow(project, address, orders)
    project.load()
    published = shop.execute("select tablename from pg_publication_tables").fetchall()
    assert published == [("orders",)]
    shop.execute("delete from others")
    follow(project, address, TWO)
    # What happened in between is not in the log.
    failed = project.load()["others"]
    assert "did not have the table all the time" in str(failed.error)
    assert "--full-refresh" in str(failed.error)
    shutil.rmtree(project.path / "lake/raw_shop/others")
    assert project.load()["others"].status == "unchanged"
    same(project, shop, "others")


def test_columns_that_change_in_the_middle_of_the_log(
    followed: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    shop.execute("insert into orders select n, 'x', n from generate_series(1, 6) as n")
    followed.load()
    shop.execute("update orders set item = 'before' where id in (1, 2)")
    shop.execute(
        "alter table orders rename qty to quantity; alter table orders add price numeric(8, 2)"
    )
    shop.execute("update orders set price = 1.5 where id in (2, 3)")
    shop.execute("alter table orders drop item")
    shop.execute("insert into orders values (7, 7, 0.5); delete from orders where id = 6")
    assert "column qty is gone and quantity is new, which looks renamed" in str(
        followed.load()["orders"].error
    )
    table = "  orders: {primary_key: [id], write: merge, contract: {dropped: [qty]}}"
    follow(followed, address_of(shop, postgres), table)
    load = followed.load()["orders"]
    assert "new column quantity (integer)" in load.notes
    assert "column qty is no longer delivered" in load.notes
    assert "quantity, price, so far only of rows that changed" in str(load.notes)
    rows = followed.rows("raw_shop.orders", "id, quantity, price", "id")
    changed = [tuple(map(str, row.values())) for row in rows if row["quantity"] is not None]
    # Of rows that changed, every column is as it is in the source; see the page for the others.
    assert changed == [
        ("1", "1", "None"),
        ("2", "2", "1.50"),
        ("3", "3", "1.50"),
        ("7", "7", "0.50"),
    ]
    shop.execute("alter table orders alter quantity type bigint; update orders set price = 2")
    assert "changed column quantity from integer to bigint" in str(followed.load()["orders"].error)


def test_a_renamed_column_keeps_its_name_in_the_lake(
    followed: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    shop.execute("insert into orders select n, 'x', n from generate_series(1, 4) as n")
    followed.load()
    shop.execute("update orders set qty = 10 where id = 1; alter table orders rename qty to pieces")
    shop.execute("update orders set pieces = 20 where id = 2; delete from orders where id = 3")
    terms = "primary_key: [id], write: merge, contract: {renamed: {pieces: qty}}"
    follow(followed, address_of(shop, postgres), f"  orders: {{{terms}}}")
    load = followed.load()["orders"]
    assert (load.error, load.counts.quarantined) == (None, 0)
    same(followed, shop)
    shop.execute("update orders set pieces = pieces + 1")
    followed.load()
    same(followed, shop)
    assert list(followed.types("raw_shop.orders"))[:3] == ["id", "item", "qty"]


@pytest.mark.parametrize("loss", ["dropped", "made_anew", "read", "unpublished"])
def test_a_gap_in_the_log_is_told_and_never_passed_over(
    followed: Project, shop: psycopg.Connection[Any], loss: str
) -> None:
    shop.execute("insert into orders values (1, 'a', 1)")
    followed.load()
    (slot,) = shop.execute("select slot_name from pg_replication_slots").fetchone() or ("",)
    shop.execute("update orders set qty = 2")
    if loss == "unpublished":
        shop.execute(sql.SQL("alter publication {} drop table orders").format(sql.Identifier(slot)))
    elif loss == "read":
        shop.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])
    else:
        shop.execute("select pg_drop_replication_slot(%s)", [slot])
    if loss == "made_anew":
        shop.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    shop.execute("update orders set qty = 3")
    before = followed.versions()["raw_shop.orders"]
    for _ in range(2):
        error = str(followed.load()["orders"].error)
        assert "changes may be missing" in error
        assert "tarn ingest shop --full-refresh" in error
        assert "raw_shop/orders" in error
    assert followed.versions()["raw_shop.orders"] == before
    shutil.rmtree(followed.path / "lake/raw_shop/orders")
    followed.load()
    shop.execute("update orders set qty = 4")
    followed.load()
    same(followed, shop)


def test_a_slot_that_the_server_gave_up_is_told(
    followed: Project, shop: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed.load()
    # A server gives one up only after gigabytes, and for all the other tests' slots.
    lost = server._SLOT.replace("wal_status = 'lost'", "true")
    monkeypatch.setattr(server, "_SLOT", lost)
    assert "given up by the server" in str(followed.load()["orders"].error)


def test_a_copied_lake_does_not_move_the_slot_of_the_original(
    followed: Project, shop: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed.load()
    shop.execute("insert into orders values (1, 'a', 1)")
    shutil.copytree(followed.path / "lake", followed.path / "copy")
    monkeypatch.setenv("TARN_LAKE", "copy")
    settings.cache_clear()
    assert "two lakes cannot follow one slot" in str(followed.load()["orders"].error)
    monkeypatch.setenv("TARN_LAKE", "second")
    settings.cache_clear()
    followed.load()
    monkeypatch.delenv("TARN_LAKE")
    settings.cache_clear()
    slots = shop.execute(
        "select count(*) from pg_replication_slots where database = current_database()"
    )
    assert slots.fetchone() == (2,)
    assert counts_of(followed.load()["orders"]) == (1, 1, 0, 0)


def test_a_table_that_cannot_be_followed_is_told_with_the_sql_to_run(
    project: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    shop.execute('create table "No Key" (id int, x int); create view seen as select * from orders')
    tables = '  no_key: {table: "No Key", primary_key: [id], write: merge}'
    tables += "\n  seen: {primary_key: [id], write: merge}\n" + TWO.partition("\n")[0]
    follow(project, address_of(shop, postgres), tables)
    loads = project.load()
    assert 'alter table "public"."No Key" replica identity full' in str(loads["no_key"].error)
    assert "ingestion/shop.yml:8" in str(loads["no_key"].error)
    assert "only tables are in the log" in str(loads["seen"].error)
    assert loads["orders"].error is None
    # Published without, its updates would fail in the source itself.
    shop.execute('update "No Key" set x = 1; alter table "No Key" replica identity full')
    shop.execute('insert into "No Key" values (1, 1), (2, 2)')
    assert counts_of(project.load()["no_key"]) == (2, 2, 0, 0)
    shop.execute('update "No Key" set x = 2, id = id + 1; delete from "No Key" where id = 2')
    project.load()
    assert [tuple(row.values()) for row in project.rows("raw_shop.no_key")] == [(3, 2)]


def test_a_role_without_rights_is_told_the_sql_to_run(
    project: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    role = "reader"
    shop.execute("create role reader login password 'secret'; grant select on orders to reader")
    address = f"postgresql://reader:secret@127.0.0.1:{shop.info.port}/{shop.info.dbname}"
    follow(project, address, TWO.partition("\n")[0])
    error = str(project.load()["orders"].error)
    publication = error.partition("administrator run: ")[2]
    assert publication.startswith("create publication")
    shop.execute(publication.encode())
    error = str(project.load()["orders"].error)
    right = error.partition("administrator run: ")[2]
    assert right == "alter role reader with replication"
    source = cdc.database(declare(project.path / "ingestion/shop.yml"), settings())
    assert "the role may NOT make replication slots" in source.check()
    shop.execute(right.encode())
    assert project.load()["orders"].error is None
    shop.execute("insert into orders values (1, 'a', 1)")
    assert counts_of(project.load()["orders"]) == (1, 1, 0, 0)
    said = source.check()
    assert "the role may make replication slots" in said
    assert any(line.startswith("slot tarn_shop_") and "behind" in line for line in said)
    assert "orders can be followed" in said
    shop.execute(f"drop owned by {role}; drop role {role}".encode())


def test_only_postgresql_is_followed_and_by_key(project: Project) -> None:
    project.sql(ORDERS)
    project.declare("shop", "sql_database", "sqlite:///shop.db\nmode: cdc", TWO.partition("\n")[0])
    error = str(project.load()["orders"].error)
    assert "ingestion/shop.yml:6: mode: cdc follows PostgreSQL, and this is sqlite" in error
    for tables in (
        "  orders: {write: append}",
        "  orders: {write: merge, primary_key: [id], cursor: at}",
    ):
        project.declare("shop", "sql_database", "sqlite:///shop.db\nmode: cdc", tables)
        with pytest.raises(TarnError, match="mode: cdc needs write: merge and no cursor"):
            project.load()
    tables = "  orders: {write: merge, primary_key: [id], deletes: soft}"
    project.declare("shop", "sql_database", "sqlite:///shop.db", tables)
    with pytest.raises(TarnError, match="deletes needs mode: cdc"):
        project.load()


def test_the_page_can_be_followed(
    project: Project, shop: psycopg.Connection[Any], postgres: str
) -> None:
    shop.execute("drop table orders")
    shop.execute("create table orders (order_id int primary key, total numeric(8, 2))")
    shop.execute("create table customers (customer_id int primary key, name text)")
    shop.execute("insert into orders values (1, 9.5); insert into customers values (1, 'a')")
    said = []
    for block in BLOCK.finditer((ROOT / "docs/how-to/follow-a-database.md").read_text()):
        if block["language"] == "sql":
            shop.execute(block["text"].partition("\n")[0].encode())
            shop.execute(block["text"].partition("\n")[2].encode())
        elif block["path"]:
            (project.path / block["path"]).write_text(block["text"])
        else:
            said.append(
                _run(project, block["text"], f"127.0.0.1:{shop.info.port}/{shop.info.dbname}")
            )
            shop.execute("insert into orders values (2, 1) on conflict do nothing")
            shop.execute("delete from orders where order_id = 1; delete from customers")
    assert "read whole" in said[0]
    assert "behind" in said[1]
    assert [row["order_id"] for row in project.rows("raw_shop.orders")] == [2]
    assert project.rows("raw_shop.customers", "name, _deleted_at is null as here") == [
        {"name": "a", "here": False}
    ]
    shop.execute("drop owned by lake; drop role lake")


def _run(project: Project, command: str, address: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # The page's role is told the SQL of a publication; the owner of the tables needs none.
        "SHOP_DATABASE_URL": f"postgresql://{USER}:{ESCAPED}@{address}",
    }
    done = subprocess.run(
        ["sh", "-ec", command], cwd=project.path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_slot_waits_for_open_transactions_and_says_for_which(
    followed: Project,
    shop: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server, "SLOT_SECONDS", 0.2)
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    with shop.transaction():
        shop.execute("insert into orders values (1, 'a', 1)")
        error = str(followed.load()["orders"].error)
    waits = f"waits for open transactions, the oldest by process {shop.info.backend_pid} since"
    assert waits in error
    assert waits in caplog.text
    followed.load()
    same(followed, shop)


def test_a_full_refresh_mends_a_gap_and_a_rehearsal_leaves_no_mark(
    followed: Project, shop: psycopg.Connection[Any]
) -> None:
    slots = "select count(*) from pg_replication_slots where database = current_database()"
    shop.execute("insert into orders values (1, 'a', 1), (2, 'b', 2)")
    ingest(["shop"], options=Options(dry_run=True))
    assert shop.execute(slots).fetchone() == (0,)
    followed.load()
    shop.execute("update orders set qty = 5 where id = 1")
    before = followed.versions()
    (rehearsed,) = ingest(["shop"], options=Options(dry_run=True))
    assert rehearsed.rows.accepted == 1
    assert followed.versions() == before
    shop.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
        " where database = current_database()"
    )
    shop.execute("delete from orders where id = 2")
    assert "changes may be missing" in str(followed.load()["orders"].error)
    (refreshed,) = ingest(["shop"], options=Options(full_refresh=True))
    assert not refreshed.failed
    same(followed, shop)
    shop.execute("update orders set qty = 6")
    assert counts_of(followed.load()["orders"]) == (1, 1, 0, 0)
    same(followed, shop)
