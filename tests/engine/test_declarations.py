"""Declarations are read strictly, and every mistake names its place and the nearest key."""

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tarn.errors import TarnError
from tarn.ingestion.declarations import (
    FOLDER,
    SCHEMA_FILE,
    declare,
    declared,
    schema_text,
)
from tarn.ingestion.declarations.sql_database import SqlTable
from tarn.settings import Settings
from tests.engine.conftest import ROOT

GOOD = """\
system: shop
description: A shop.
owner: {name: Us, email: us@example.com}
kind: sql_database
connection: ${SHOP_URL:-sqlite:///shop.db}
schedule: "0 2 * * *"
tables:
  orders:
    primary_key: [order_id]
    cursor: updated_at
    write: merge
"""
FILES = sorted((ROOT / FOLDER).glob("*.yml"))


def _mistake(folder: Path, text: str, name: str = "shop.yml") -> str:
    (folder / name).write_text(text)
    with pytest.raises(TarnError) as raised:
        declare(folder / name)
    return str(raised.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_projects_own_declarations_fit_the_published_schema(file: Path) -> None:
    assert file.read_text().startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")
    schema = json.loads((ROOT / FOLDER / SCHEMA_FILE).read_text())
    jsonschema.validate(yaml.safe_load(file.read_text()), schema)
    assert declare(file).name == file.stem


def test_the_published_schema_is_current() -> None:
    committed = (ROOT / FOLDER / SCHEMA_FILE).read_text()
    command = "from tarn.ingestion.declarations import schema_text as t; print(t(), end='')"
    assert committed == schema_text(), f'python -c "{command}" > {FOLDER}/{SCHEMA_FILE}'


def test_the_published_schema_refuses_what_the_engine_refuses() -> None:
    schema = json.loads(schema_text())
    for wrong in ({"primary_keys": ["a"]}, {"write": "upsert"}, {"columns": {"a": "varchar"}}):
        spec = yaml.safe_load(GOOD)
        spec["tables"]["orders"].update(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spec, schema)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("cursor:", "cursr:", "shop.yml:10: unknown key 'cursr'; did you mean 'cursor'?"),
        ("kind: sql", "kind: sq", "shop.yml:4: unknown kind 'sq_database'; did you mean 'sql_data"),
        ("kind: sql_database\n", "", "shop.yml:1: key 'kind' is missing; known: sql_database, "),
        ("write: merge", "write: upsert", "shop.yml:11: tables.orders.write: Input should be 'app"),
        ('"0 2 * * *"', "daily", "shop.yml:6: schedule: 'daily' is not a cron expression"),
        ("write: merge", "columns: {a: varchar}", "shop.yml:11: tables.orders.columns.a: unknown"),
        ("write: merge", "write: replace", "tables.orders: write: replace reads everything each t"),
        ("  orders:", "  Orders:", "shop.yml:8: tables.Orders"),
        ("system: shop", "system: shops", "shop.yml:1: system 'shops' is declared in shop.yml"),
        ("description: A", "system: A", "shop.yml:2: key 'system' is given twice"),
        ("owner: {", "owner: {{", "shop.yml:4: expected ',' or '}'"),
        ("name: Us", "phone: 1, name: Us", "shop.yml:3: unknown key 'phone'; known: name, email"),
    ],
)
def test_a_mistake_names_its_line_and_the_nearest_key(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    assert before in GOOD
    assert told in _mistake(tmp_path, GOOD.replace(before, after))


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        ("    write: merge\n", "shop.yml:8: key 'write' is missing"),
        ("    primary_key: [order_id]\n", "shop.yml:8: tables.orders: write: merge needs a p"),
    ],
)
def test_what_no_database_can_tell_must_be_said(tmp_path: Path, left_out: str, told: str) -> None:
    files = GOOD.replace("sql_database", "files") + "    path: '*.csv'\n"
    assert told in _mistake(tmp_path, files.replace(left_out, ""))


def test_all_mistakes_of_a_file_are_told_at_once_and_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("cursor:", "cursr:").replace("owner:", "onwer:").replace("merge", "mrge")
    lines = _mistake(tmp_path, text).splitlines()
    assert lines[0].endswith("4 mistakes")
    assert [line.split(":")[1] for line in lines[1:]] == ["1", "3", "10", "11"]


def test_keys_deep_inside_a_union_are_known(tmp_path: Path) -> None:
    text = GOOD.replace("sql_database", "rest_api").replace("${SHOP_URL:-sqlite:///shop.db}", "X")
    text = text.replace("X", "{base_url: http://x, auth: {type: bearer, tokn: y}}")
    told = _mistake(tmp_path, text + "    endpoint: {path: a, incremental: {start_parm: b}}\n")
    assert "unknown key 'tokn'; did you mean 'token'?" in told
    assert "unknown key 'start_parm'; did you mean 'start_param'?" in told


def test_mistakes_of_several_files_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(GOOD.replace("shop", "a").replace("cursor", "cursr"))
    (tmp_path / "b.yml").write_text(GOOD.replace("shop", "b").replace("owner", "ownr"))
    (tmp_path / "c.yml").write_text(GOOD.replace("shop", "c"))
    with pytest.raises(TarnError, match=r"(?s)a\.yml:10.*b\.yml:.*'ownr'"):
        declared(tmp_path)
    assert [each.name for each in declared(tmp_path, ["c"])] == ["c"]
    with pytest.raises(TarnError, match="no system 'cc'; did you mean 'c'"):
        declared(tmp_path, ["cc"])


def test_variables_are_put_in_and_a_missing_one_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "shop.yml").write_text(GOOD.replace(":-sqlite:///shop.db}", "}"))
    shop = declare(tmp_path / "shop.yml")

    def at(variables: dict[str, str]) -> Settings:
        return Settings(tmp_path, "lake", tmp_path, variables)

    assert shop.resolved(at({"SHOP_URL": "sqlite:///x"})).system.connection == "sqlite:///x"
    with pytest.raises(TarnError, match=r"shop\.yml:5: variable SHOP_URL is not set\n  → export"):
        shop.resolved(at({}))


def test_declarations_do_not_change(tmp_path: Path) -> None:
    (tmp_path / "shop.yml").write_text(GOOD)
    orders = declare(tmp_path / "shop.yml").system.tables["orders"]
    assert isinstance(orders, SqlTable)
    with pytest.raises(ValueError, match="frozen"):
        orders.write = "append"
