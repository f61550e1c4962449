"""A PostgreSQL database followed by its log, against a real server."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from tests.engine.ingesting import Project, counts_of, project
from tests.engine.postgres import database, postgres

__all__ = ["postgres", "project"]

ORDERS = "create table orders (id int primary key, item text, qty int)"


@pytest.fixture
def shop(postgres: str, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    """A database of its own; its slots end with the test, as the server has few."""
    address = database(postgres, request.node.name[:60])
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
    assert [tuple(row.values()) for row in project.rows(f"raw_shop.{table}", order="id")] == rows


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
