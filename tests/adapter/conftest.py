"""What dbt-tests-adapter needs to run here: a project of Delta tables in a lake of its own."""
# ruff: noqa: F811 (a fixture is asked for by its name)

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlglot
import yaml
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.adapters.duckdb.impl import DuckDBAdapter
from dbt.cli.main import dbtRunner
from dbt.tests.fixtures.project import (  # noqa: F401
    adapter,
    analyses,
    clean_up_logging,
    dbt_profile_data,
    dependencies,
    dependencies_yml,
    environment,
    functions,
    initialization,
    macros,
    models,
    packages,
    packages_yml,
    prefix,
    profiles_config_update,
    profiles_root,
    profiles_yml,
    project,
    project_config_update,
    project_files,
    project_root,
    project_setup,
    properties,
    seeds,
    selectors,
    selectors_yml,
    shared_data_dir,
    snapshots,
    test_config,
    tests,
    unique_schema,
)
from dbt_common.behavior_flags import BehaviorFlagRendered
from sqlglot import exp

from tarn.settings import settings
from tarn.storage.duck import identifier, select_from
from tarn.storage.lake import Lake
from tarn.storage.writer import write

# A fifth of the suite's time went into finding out, by the stack, who declares a flag.
BehaviorFlagRendered._default_source = staticmethod(  # type: ignore[method-assign]
    lambda: "dbt.adapters.duckdb.impl"
)

MACROS = Path(__file__).parents[2] / "tarn/dbt/macros"
DELTA = {"+file_format": "delta"}
BY_THE_TESTS = ("_test", "__test")
"""Names of the connections by which the suite itself reads and changes tables."""
READ_ARTIFACTS = ("Docs", "Clone", "Empty")
"""Parts of the names of classes that read dbt's manifest or results from files. To the others they
are a third of the time that they take."""
HOOK_COLUMNS = """
    test_state text, target_dbname text, target_host text, target_name text,
    target_schema text, target_type text, target_user text, target_pass text,
    target_threads integer, run_started_at text, invocation_id text, thread_id text
"""


@pytest.fixture(scope="class")
def lake(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Lake]:
    folder = tmp_path_factory.mktemp("tarn")
    with pytest.MonkeyPatch.context() as patch:
        writes = any(part in request.node.name for part in READ_ARTIFACTS)
        patch.setenv("DBT_WRITE_JSON", str(writes))
        patch.setenv("TARN_LAKE", str(folder / "lake"))
        patch.setenv("TARN_WORK", str(folder / "work"))
        patch.setattr(dbtRunner, "invoke", _as_a_new_process(dbtRunner.invoke))
        patch.setattr(DuckDBAdapter, "run_sql_for_tests", _run_sql(DuckDBAdapter.run_sql_for_tests))
        patch.setattr(DuckDBAdapter, "execute", _execute(DuckDBAdapter.execute))
        settings.cache_clear()
        yield Lake(str(folder / "lake"))
        _close()
    settings.cache_clear()


@pytest.fixture(scope="class")
def dbt_profile_target(lake: Lake) -> dict[str, Any]:
    return {
        "type": "duckdb",
        "path": ":memory:",
        "threads": 4,
        "plugins": [{"module": "tarn.dbt.plugin", "alias": "tarn"}],
    }


@pytest.fixture(scope="class")
def logs_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Not in the repository's folder, where the suite would have it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("logs"))
        patch.setenv("DBT_LOG_PATH", folder)
        yield folder


@pytest.fixture(scope="class")
def profile_user() -> None:
    """DuckDB has no users."""


@pytest.fixture(scope="module")
def test_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the suite expects an adapter to bring: tables for hooks to write into."""
    folder = tmp_path_factory.mktemp("data")
    for kind in ("model", "run"):
        table = f"{{schema}}.on_{kind}_hook"
        sql = f"drop table if exists {table}; create table {table} ({HOOK_COLUMNS})"
        (folder / f"seed_{kind}.sql").write_text(sql)
    return folder


@pytest.fixture(scope="session")
def macros_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine's macros, but for those that give a project's schemas and SQL their form."""
    folder = tmp_path_factory.mktemp("engine") / "macros"
    ignored = shutil.ignore_patterns("generate_schema_name.sql", "sql")
    return Path(shutil.copytree(MACROS, folder, ignore=ignored))


@pytest.fixture(scope="class")
def dbt_project_yml(
    project_root: Path, project_config_update: Any, macros_dir: Path
) -> dict[str, Any]:
    """The class's project, with this one's macros and everything a Delta table."""
    changes = project_config_update or {}
    changes = yaml.safe_load(changes) if isinstance(changes, str) else changes
    config = {
        "name": "test",
        "profile": "test",
        "flags": {"send_anonymous_usage_stats": False},
        **changes,
    }
    config["macro-paths"] = [*config.get("macro-paths", ["macros"]), str(macros_dir)]
    for kind in ("models", "seeds", "snapshots"):
        config[kind] = {**DELTA, **config.get(kind, {})}
    (Path(project_root) / "dbt_project.yml").write_text(yaml.safe_dump(config))
    return config


def _close() -> None:
    """Forget the DuckDB in memory, which dbt-duckdb keeps for the life of the process."""
    if (environment := DuckDBConnectionManager._ENV) is not None:
        environment.close()
    DuckDBConnectionManager._ENV = None


def _as_a_new_process(invoke: Callable[..., Any]) -> Callable[..., Any]:
    """Let each dbt command find in DuckDB what the lake has, and tables the tests made by hand."""

    @functools.wraps(invoke)
    def invoked(*args: Any, **kwargs: Any) -> Any:
        environment = DuckDBConnectionManager._ENV
        if environment is not None and environment.conn is not None:
            connection = environment.conn
            found = connection.execute(
                "select table_schema || '.' || table_name, table_type"
                " from information_schema.tables where table_type <> 'LOCAL TEMPORARY'"
            ).fetchall()
            plugin = environment._plugins["tarn"]
            ours = plugin._pinned.keys() | plugin._views
            for name, kind in found:
                if name in ours:
                    connection.execute(
                        f"drop {'view' if kind == 'VIEW' else 'table'} {identifier(name)}"
                    )
            environment._plugins = environment.initialize_plugins(environment.creds)
            environment._plugins["tarn"].configure_connection(connection)
        return invoke(*args, **kwargs)

    return invoked


def _run_sql(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let the suite's own SQL change Delta tables."""

    @functools.wraps(run)
    def ran(adapter: DuckDBAdapter, sql: str, fetch: str | None, conn: Any) -> Any:
        cursor = conn.handle.cursor()._cursor
        return None if _changed_delta(cursor, sql) else run(adapter, sql, fetch, conn)

    return ran


def _execute(execute: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the suite's other way to run SQL."""

    @functools.wraps(execute)
    def executed(adapter: DuckDBAdapter, sql: str, *args: Any, **kwargs: Any) -> Any:
        connection = adapter.connections.get_if_exists()
        if connection is not None and connection.name in BY_THE_TESTS:
            cursor = connection.handle.cursor()._cursor
            if _changed_delta(cursor, sql):
                sql = "select 1"
        return execute(adapter, sql, *args, **kwargs)

    return executed


def _changed_delta(cursor: Any, sql: str) -> bool:
    """Whether a statement was for a Delta table; DuckDB cannot change one, so it changes a copy."""
    lake = Lake.open(settings())
    try:
        statements = sqlglot.parse(sql, dialect="duckdb")
    except sqlglot.errors.ParseError:
        return False
    for statement in statements:
        if isinstance(statement, exp.Drop) and statement.args["kind"] == "SCHEMA":
            schema = statement.find(exp.Table)
            assert schema is not None
            shutil.rmtree(f"{lake.root}/{schema.db or schema.name}", ignore_errors=True)
            continue
        target = _target(statement)
        name = f"{target.db}.{target.name}" if target else "."
        if statement is None or target is None or "" in name.split(".") or not lake.table(name):
            continue
        if isinstance(statement, exp.Drop):
            cursor.execute(f"drop view {identifier(name)}")
            shutil.rmtree(lake.uri(name))
        else:
            _change(lake, name, cursor, statement, target)
        return True
    return False


def _target(statement: exp.Expr | None) -> exp.Table | None:
    """The table that a statement changes."""
    changes = (exp.Insert, exp.Update, exp.Delete, exp.Alter, exp.Drop, exp.TruncateTable)
    return statement.find(exp.Table) if isinstance(statement, changes) else None


def _change(lake: Lake, name: str, cursor: Any, statement: exp.Expr, target: exp.Table) -> None:
    cursor.execute(f"create or replace temp table changed as from {identifier(name)}")
    target.replace(exp.to_table("changed"))
    cursor.execute(statement.sql(dialect="duckdb"))
    write(lake, name, cursor.execute("from changed").to_arrow_table(), mode="replace")
    table = lake.table(name)
    assert table is not None
    cursor.execute(f"create or replace view {identifier(name)} as {select_from(table)}")
