"""`tarn source check | preview | new` say what is so, and change nothing they should not."""

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psycopg
import pyarrow as pa
import pytest
import yaml
from deltalake import write_deltalake
from sqlfluff.core import FluffConfig, Linter
from sqlfluff.core.dialects import dialect_selector

from tarn.cli import main
from tarn.ingestion.declarations import KINDS, declare
from tarn.ingestion.declarations.delta_sharing import SharingTable
from tarn.ingestion.sources import Offered
from tarn.scaffold.files import render
from tarn.scaffold.models import singular, staging_files
from tarn.settings import settings
from tests.engine.conftest import ROOT
from tests.engine.postgres import database, postgres
from tests.engine.upstreams import TOKEN, serving, sharing

__all__ = ["postgres"]

Tarn: TypeAlias = Callable[..., "Said"]

SHOP = """
create table customers (
    CustomerId integer primary key, "First Name" text not null, born date, updated_at timestamp
);
insert into customers values
    (1, 'Ann ', '1990-01-02', '2024-01-01 10:00:00'), (2, 'Bob', 'unknown', '2024-01-02 10:00:00');
create table tags (name text, uses integer);
insert into tags values ('a', 1), ('a', 1), ('b', 2);
"""
TABLES = """
  customers: {primary_key: [customer_id], write: merge, cursor: updated_at}
  tags: {write: append}
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one database, and nothing loaded."""
    for name in ("TARN_LAKE", "TARN_WORK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ingestion").mkdir()
    (tmp_path / "dbt_project.yml").touch()
    sql(tmp_path, SHOP)
    declared(tmp_path, TABLES)
    return tmp_path


def sql(folder: Path, statements: str) -> None:
    with closing(sqlite3.connect(folder / "shop.db")) as connection:
        connection.executescript(statements)


def declared(folder: Path, tables: str, connection: str = "sqlite:///shop.db") -> None:
    (folder / "ingestion/shop.yml").write_text(
        "system: shop\ndescription: For a test.\nowner: {name: Us, email: us@x.com}\n"
        f"kind: sql_database\nconnection: {connection}\ntables:{tables}"
    )


@dataclass(frozen=True)
class Said:
    out: str
    err: str


@pytest.fixture
def tarn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Tarn]:
    """The command line, in this process."""

    def command(*arguments: str, ends_in: int = 0) -> Said:
        settings.cache_clear()
        monkeypatch.setattr(sys, "argv", ["tarn", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = Said(*capsys.readouterr())
        assert (ended.value.code or 0) == ends_in, said
        return said

    yield command
    settings.cache_clear()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_check_tells_how_each_table_will_be_loaded(shop: Path, tarn: Tarn) -> None:
    before = files(shop)
    said = tarn("source", "check").out
    assert "customers (2 rows): reads rows from the highest updated_at on" in said
    assert "quarantine will take 1 of 2 rows, first because born: 'unknown' is not date" in said
    assert "tags (3 rows): reads everything; adds what is new" in said
    assert "no primary_key" in said
    assert files(shop) == before


def test_a_check_fails_for_what_cannot_work(shop: Path, tarn: Tarn) -> None:
    declared(
        shop,
        """
  customer: {write: replace}
  tags: {write: merge, primary_key: [nam]}
  again: {table: tags, write: append, rules: ["usess > 0"]}
  customers: {write: append}
""",
    )
    said = tarn("source", "check", "shop", ends_in=1).out
    assert "no table 'customer'; did you mean 'customers'?" in said
    assert (
        "column 'nam', declared under primary_key, is not delivered; did you mean 'name'?" in said
    )
    assert "usess" in said
    assert "! customers (2 rows)" in said


def test_a_check_tells_of_columns_that_changed_since_the_last_load(shop: Path, tarn: Tarn) -> None:
    tarn("ingest")
    sql(shop, "alter table tags drop column uses; alter table tags add note text;")
    before = files(shop)
    said = tarn("source", "check").out
    assert "tags: new column note (text)" in said
    assert "tags: column uses is no longer delivered" in said
    assert files(shop) == before


def test_a_system_that_cannot_be_reached_is_told_once_without_its_password(
    shop: Path, tarn: Tarn
) -> None:
    declared(shop, "\n  customers: {write: replace}\n", "postgresql://me:hush-hush@127.0.0.1:9/x")
    done = tarn("source", "check", ends_in=1)
    assert "cannot open postgresql" in done.out
    assert "hush-hush" not in done.out + done.err


def test_a_preview_shows_rows_as_they_would_land_and_leaves_no_trace(
    shop: Path, tarn: Tarn
) -> None:
    before = files(shop)
    said = tarn("source", "preview", "shop", "customers").out
    lines = said.splitlines()
    assert lines[0] == "raw_shop.customers: 1 row, all"
    assert lines[1].split() == ["customer_id", "first_name", "born", "updated_at"]
    assert lines[2].split() == ["bigint", "text", "date", "timestamp"]
    assert "1 row would go to quarantine" in said
    assert "born: 'unknown' is not date" in said
    assert files(shop) == before


def test_a_preview_stops_at_its_limit(shop: Path, tarn: Tarn) -> None:
    said = tarn("source", "preview", "shop", "tags", "--limit", "2").out
    assert said.startswith("raw_shop.tags: 2 rows\n")
    assert len(said.split("bigint")[1].split()) == 4


def test_a_preview_of_json_shows_children_too(shop: Path, tarn: Tarn) -> None:
    (shop / "drop").mkdir()
    rows = [{"id": i, "lines": [{"sku": f"s{i}"}]} for i in range(5)]
    (shop / "drop/orders.json").write_text(json.dumps(rows))
    (shop / "ingestion/drop.yml").write_text(
        "system: drop\ndescription: For a test.\nowner: {name: Us, email: us@x.com}\nkind: files\n"
        "connection: drop\ntables:\n  orders: {path: orders.json, write: append}\n"
    )
    said = tarn("source", "preview", "drop", "--limit", "3").out
    assert "raw_drop.orders: 3 rows" in said
    assert "raw_drop.orders__lines: 3 rows" in said
    assert not (shop / "lake").exists()


def test_an_unknown_table_is_told_with_the_nearest(shop: Path, tarn: Tarn) -> None:
    said = tarn("source", "preview", "shop", "tag", ends_in=1).err
    assert "did you mean 'tags'?" in said


def test_a_new_system_is_declared_from_the_live_one_and_never_overwritten(
    shop: Path, tarn: Tarn
) -> None:
    (shop / "ingestion/shop.yml").unlink()
    command = ("source", "new", "sql_database", "shop", "--connection", "sqlite:///shop.db")
    tarn(*command, "--tables", "cust*")
    assert declare(shop / "ingestion/shop.yml").system.tables.keys() == {"customers"}
    assert (shop / "ingestion/schema.json").exists()
    staging = shop / "models/staging/shop/stg_shop__customers.sql"
    staging.write_text("-- mine")
    said = tarn(*command, ends_in=1).err
    assert "there already: ingestion/shop.yml" in said
    assert staging.read_text() == "-- mine"
    tarn(*command, "--force")
    assert declare(shop / "ingestion/shop.yml").system.tables.keys() == {"customers", "tags"}
    assert staging.read_text() != "-- mine"


def test_a_password_is_put_into_a_variable_and_only_kept_if_asked(
    shop: Path, tarn: Tarn, postgres: str
) -> None:
    address = database(postgres, "secretive")
    with psycopg.connect(address) as connection:
        connection.execute("create table notes (id int primary key, note text)")
        connection.execute("comment on table notes is 'What {{ people }} say.'")
    command = ("source", "new", "sql_database", "erp", "--connection", address)
    done = tarn(*command)
    assert "ERP_DATABASE_URL" in done.out
    password = address.split(":")[2].split("@")[0]
    assert not [p for p in shop.rglob("*") if p.is_file() and password in p.read_text("latin-1")]
    assert password not in done.out + done.err
    erp = declare(shop / "ingestion/erp.yml").system
    assert erp.connection == "${ERP_DATABASE_URL}"
    assert erp.tables["notes"].description == "What { { people }} say."
    tarn(*command, "--force", "--save-secret")
    assert (shop / "secrets.env").read_text() == f"ERP_DATABASE_URL={address}\n"
    assert (shop / "secrets.env").stat().st_mode & 0o077 == 0
    tarn("source", "check", "erp")


def test_a_share_says_which_tables_it_has(shop: Path, tarn: Tarn) -> None:
    write_deltalake(shop / "shared", pa.table({"id": [1, 2], "Name": ["a", "b"]}))
    with serving(sharing(shop / "shared")) as address:
        profile = {"shareCredentialsVersion": 1, "endpoint": address, "bearerToken": TOKEN}
        (shop / "p.share").write_text(json.dumps(profile))
        tarn("source", "new", "delta_sharing", "panel", "--connection", "p.share")
        people = declare(shop / "ingestion/panel.yml").system.tables["people"]
        assert isinstance(people, SharingTable)
        assert (people.share, people.shared_schema, people.write) == (
            "research",
            "panel",
            "replace",
        )
        staging = (shop / "models/staging/panel/stg_panel__people.sql").read_text()
        assert "trim(name) as people_name" in staging
        assert f"{address}: 1 tables in research" in tarn("source", "check", "panel").out
        (shop / "p.share").write_text(json.dumps({**profile, "bearerToken": "wrong"}))
        assert "403" in tarn("source", "check", "panel", ends_in=1).out


def test_a_system_that_cannot_be_asked_writes_nothing(shop: Path, tarn: Tarn) -> None:
    before = files(shop)
    command = ("source", "new", "sql_database", "erp", "--connection")
    said = tarn(*command, "postgresql://me:hush@127.0.0.1:9/x", ends_in=1).err
    assert "hush" not in said
    said = tarn(*command, "sqlite:///no.db", ends_in=1).err
    assert "--connection: no database file no.db" in said
    said = tarn("source", "new", "sql_data", "erp", ends_in=1).err
    assert "did you mean 'sql_database'?" in said
    said = tarn("source", "new", "files", "My-ERP", ends_in=1).err
    assert "'My-ERP' cannot be a system's name" in said
    assert files(shop) == before


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_connection_a_template_is_written_that_is_valid(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "ingestion/new_one.yml"
    path.parent.mkdir()
    path.write_text(render(f"kinds/{kind}.yml", system="new_one"))
    assert declare(path).system.kind == kind


def test_staging_models_pass_lint_whatever_columns_are_called(tmp_path: Path) -> None:
    dialect = dialect_selector("duckdb")
    words = dialect.sets("reserved_keywords") | dialect.sets("unreserved_keywords")
    known = yaml.safe_load((ROOT / "tarn/scaffold/words.yml").read_text())
    assert {word.lower() for word in words} <= {*known["reserved"], *known["other"]}
    odd = ["loaded_at", "x" * 63, "_2nd", "user", "word_user", "table", "at"]
    names = [*odd, *known["reserved"][::9], *known["other"][::99]]
    for kind in ("text", "bigint"):
        made = staging_files(
            tmp_path, "sys", "Words.", [Offered("words", {}, dict.fromkeys(names, kind))]
        )
        linter = Linter(config=FluffConfig.from_path(str(ROOT)))
        text = made["models/staging/sys/stg_sys__words.sql"]
        found = linter.lint_string(text, fname=str(ROOT / "models/words.sql")).violations
        assert [str(violation) for violation in found] == []
        (model,) = yaml.safe_load(made["models/staging/sys/stg_sys__words.yml"])["models"]
        assert len({column["name"] for column in model["columns"]}) == len({*names}) + 1


@pytest.mark.parametrize(
    ("many", "one"),
    [("orders", "order"), ("categories", "category"), ("addresses", "address"), ("boxes", "box"),
     ("status", "status"), ("news_items", "news_item"), ("glass", "glass")],
)  # fmt: skip
def test_a_row_is_called_by_one_of_what_the_table_says(many: str, one: str) -> None:
    assert singular(many) == one
