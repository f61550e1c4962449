"""The dbt-duckdb plugin by which dbt on DuckDB reads and writes the lake.

DuckDB itself is in memory and forgets everything. When dbt opens it, each Delta table appears
as a view pinned to its version at that moment, and dbt's own views are made again from their
SQL, which the lake keeps. A model's rows then stream from the model's own cursor into the one
Delta writer. Macros reach it through `adapter.store_relation('tarn', …)`; see `lake.sql`.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import TargetConfig
from deltalake import DeltaTable

from tarn.dbt import publication, views
from tarn.settings import settings
from tarn.storage import releases
from tarn.storage.duck import identifier, prepare, select_from, stream
from tarn.storage.lake import Lake
from tarn.storage.predicates import any_of
from tarn.storage.releases import Release
from tarn.storage.writer import ROW_GROUP_ROWS, Written, write

log = logging.getLogger(__name__)


class Plugin(BasePlugin):
    """One per dbt process."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        self._lake = Lake.open(settings())
        self._cursor = threading.local()
        self._pinned: dict[str, int] = {}
        self._written: dict[str, Written] = {}
        self._before: Release | None = None

    def update_connection_config(self, creds: DuckDBCredentials, config: dict[str, Any]) -> None:
        spill = settings().work_dir / "spill"
        spill.mkdir(parents=True, exist_ok=True)
        config.setdefault("temp_directory", str(spill))

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        prepare(conn, self._lake)
        self._before = releases.current(self._lake)
        for name in self._lake.names():
            self._show(conn, name)
        views.restore(conn, self._lake)

    def configure_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        # A cursor shared by threads returns wrong rows without an error: each keeps its own.
        self._cursor.own = cursor

    def store(self, target_config: TargetConfig) -> None:
        """Do what a macro asks; `config['operation']` names it, `config['result']` answers."""
        request: dict[str, Any] = target_config.config
        relation = target_config.relation
        operations: dict[str, Callable[[str, dict[str, Any]], Any]] = {
            "write": self._write,
            "remember_view": self._remember_view,
            "publish": self._publish,
            "measure_tables": self._measure_tables,
        }
        name = f"{relation.schema}.{relation.identifier}" if relation else ""
        request["result"] = operations[request["operation"]](name, request)

    def _show(self, cursor: duckdb.DuckDBPyConnection, name: str) -> None:
        """Make the table a view, pinned to its latest version."""
        table = self._table(name)
        self._pinned[name] = table.version()
        schema = identifier(name.partition(".")[0])
        cursor.execute(f"create schema if not exists {schema}")
        cursor.execute(f"create or replace view {identifier(name)} as {select_from(table)}")

    def _write(self, name: str, request: dict[str, Any]) -> int:
        """Stream the rows of `request['sql']` into the table; the number of rows."""
        cursor: duckdb.DuckDBPyConnection = self._cursor.own
        if request["mode"] == "replace_keys":
            request = {**request, **_replace_keys(cursor, name, request)}

        def rows() -> pa.RecordBatchReader:
            return stream(cursor, request["sql"], ROW_GROUP_ROWS)

        options = {key: request[key] for key in _WRITE_OPTIONS if request.get(key)}
        written = write(self._lake, name, rows, mode=request["mode"], **options)
        views.forget(self._lake, name)
        self._written[name] = written
        self._show(cursor, name)
        return written.rows

    def _remember_view(self, name: str, request: dict[str, Any]) -> None:
        views.remember(self._lake, name, request["sql"])

    def _publish(self, _: str, request: dict[str, Any]) -> str:
        return publication.publish(self._lake, request, self._pinned, self._written, self._before)

    def _measure_tables(self, _: str, request: dict[str, Any]) -> None:
        """Fill the temporary table `lake_tables` with what each table of the lake comes to."""
        rows = [[*name.split("."), *_measures(self._table(name))] for name in self._pinned]
        cursor: duckdb.DuckDBPyConnection = self._cursor.own
        if rows:
            cursor.executemany("insert into lake_tables values (?, ?, ?, ?, ?, ?, ?)", rows)

    def _table(self, name: str) -> DeltaTable:
        table = self._lake.table(name)
        assert table is not None
        return table


def _measures(table: DeltaTable) -> list[Any]:
    files = pa.table(table.get_add_actions(flatten=True))
    counts = (pc.sum(files[column]).as_py() or 0 for column in ("num_records", "size_bytes"))
    return [table.metadata().description, table.version(), *counts, files.num_rows]


_WRITE_OPTIONS = (
    "keys", "partition_by", "where", "evolve", "not_null", "description", "comments", "properties"
)  # fmt: skip
_MOST_KEYS = 1000
"""Above so many distinct keys a predicate costs more than rewriting the table."""


def _replace_keys(
    cursor: duckdb.DuckDBPyConnection, name: str, request: dict[str, Any]
) -> dict[str, Any]:
    """How to put the query's rows in place of all rows that share a key with one of them."""
    cursor.execute(f"create or replace temp table incoming as {request['sql']}")
    keys = request["keys"]
    listed = ", ".join(identifier(key) for key in keys)
    distinct = cursor.execute(f"select distinct {listed} from incoming limit {_MOST_KEYS + 1}")
    found = distinct.fetchall()
    if not found:
        return {"mode": "append", "sql": "select * from incoming"}
    if len(found) <= _MOST_KEYS:
        where = any_of(keys, found)
        return {"mode": "replace_where", "where": where, "sql": "select * from incoming"}
    same = " and ".join(f"k.{identifier(k)} is not distinct from i.{identifier(k)}" for k in keys)
    others = f"select * from {identifier(name)} k where not exists (from incoming i where {same})"
    return {"mode": "replace", "sql": f"{others} union all by name select * from incoming"}
