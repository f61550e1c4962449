"""The dbt-duckdb plugin by which dbt on DuckDB reads and writes the lake.

DuckDB itself is in memory and forgets everything. When dbt opens it, each Delta table appears
as a view pinned to its version at that moment, and dbt's own views are made again from their
SQL, which the lake keeps. A model's rows then stream from the model's own cursor into the one
Delta writer. Macros reach it through `adapter.store_relation('tarn', …)`; see `lake.sql`.
"""

import atexit
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import TargetConfig
from deltalake import DeltaTable

from tarn.dbt.descriptions import Turns, describe
from tarn.dbt.graph import sources_of, tables_read
from tarn.dbt.inputs import digest, fingerprint
from tarn.dbt.publication import Build, publish
from tarn.errors import TarnError
from tarn.settings import FROM_RELEASE, settings
from tarn.storage import readers, releases, views
from tarn.storage.datafiles import data_files, unnoticed
from tarn.storage.disk import disk_failure
from tarn.storage.duck import (
    Renewal,
    identifier,
    prepare,
    quoted,
    select_failure,
    select_from,
    show,
    stream,
)
from tarn.storage.lake import Lake
from tarn.storage.loads import blocked_tables
from tarn.storage.predicates import any_of
from tarn.storage.releases import Release
from tarn.storage.rows import row_count
from tarn.storage.tables import comments
from tarn.storage.types import deltable, loses_nothing
from tarn.storage.writer import READS, UPKEEP, Written, write

log = logging.getLogger(__name__)


class Plugin(BasePlugin):
    """One per dbt process."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        self._lake = Lake.open(settings())
        self._renew = Renewal(self._lake)
        self._cursor = threading.local()
        self._pinned: dict[str, int] = {}
        self._written: dict[str, Written] = {}
        self._views: dict[str, str] = {}
        self._turns = Turns()
        self._batches: dict[str, threading.Lock] = {}
        self._marks: dict[str, dict[str, str]] = {}
        self._blocked: frozenset[str] = frozenset()
        self._kept: dict[str, set[str]] = {}
        self._before: Release | None = None
        self._rebuilt: Release | None = None

    def update_connection_config(self, creds: DuckDBCredentials, config: dict[str, Any]) -> None:
        spill = settings().work_dir / "spill"
        spill.mkdir(parents=True, exist_ok=True)
        config.setdefault("temp_directory", str(spill))

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        prepare(conn, self._lake)
        self._before = releases.current(self._lake)
        self._blocked = blocked_tables(self._lake)
        if number := settings().variables.get(FROM_RELEASE):
            self._rebuilt = releases.read(self._lake, int(number))
            for name, pin in self._rebuilt.tables.items():
                self._show(conn, name, pin.version)
        else:
            for name in self._lake.names():
                self._show(conn, name)
        if reading := readers.begin(self._lake, self._pinned):
            atexit.register(readers.end, self._lake, reading)
        self._views = views.restore(conn, self._lake)

    def configure_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        # A cursor shared by threads returns wrong rows without an error: each keeps its own.
        self._cursor.own = cursor
        self._renew(cursor)

    def store(self, target_config: TargetConfig) -> None:
        """Do what a macro asks; `config['operation']` names it, `config['result']` answers."""
        request: dict[str, Any] = target_config.config
        relation = target_config.relation
        operations: dict[str, Callable[[str, dict[str, Any]], Any]] = {
            "write": self._write,
            "remember_view": self._remember_view,
            "forget_view": self._forget_view,
            "tables": lambda _, __: sorted(self._pinned.keys() - self._views.keys()),
            "misfits": self._misfits,
            "describe": self._describe,
            "publish": self._publish,
            "measure_tables": self._measure_tables,
        }
        name = f"{relation.schema}.{relation.identifier}" if relation else ""
        try:
            request["result"] = operations[request["operation"]](name, request)
        except Exception as error:
            told = None if isinstance(error, TarnError) else disk_failure(error, self._lake.root)
            if told is None:
                raise
            raise told from error

    def _show(
        self, cursor: duckdb.DuckDBPyConnection, name: str, version: int | None = None
    ) -> None:
        """Make the table a view, pinned to a version, else to its latest.

        One that cannot be read becomes a view that says so to who reads it, and is not pinned.
        """
        try:
            table = self._table(name, version)
            with unnoticed(self._lake, table):
                show(cursor, name, select_from(table))
            self._pinned[name] = table.version()
        except TarnError as failure:
            self._pinned.pop(name, None)
            log.warning("%s", failure)
            show(cursor, name, select_failure(failure))

    def _write(self, name: str, request: dict[str, Any]) -> int | None:
        """Stream the rows of `request['sql']` into the table; how many there were, or None when
        the table was made of the very same."""
        cursor: duckdb.DuckDBPyConnection = self._cursor.own
        if request["mode"] == "replace_keys":
            request = {**request, **_replace_keys(cursor, name, request)}

        def rows() -> pa.RecordBatchReader:
            return stream(cursor, request["sql"], _BATCH_ROWS)

        self._marks[name] = request["properties"]
        request["properties"].update(self._lineage(name, request))
        if blocks := self._blocks(name, request):
            self._kept[name] = blocks
            return None
        if self._is_unchanged(name, request):
            del self._marks[name]
            self._written[name] = Written(self._pinned[name], 0)
            return None
        options = {key: request[key] for key in _WRITE_OPTIONS if request.get(key)}
        # Batches of one model come from several threads; each sees what the one before made.
        with self._batches.setdefault(name, threading.Lock()), self._turns.writing():
            written = write(self._lake, name, rows, mode=request["mode"], **options)
            # Shown outside a batch's transaction: two of them cannot replace one view.
            self._show(cursor.cursor() if request.get("batch") else cursor, name)
        self._forget_view(name, request)
        if request.get("released", True):
            self._written[name] = written
        return written.rows

    def _lineage(self, name: str, request: dict[str, Any]) -> dict[str, str]:
        """What a commit tells of what it was made from."""
        read = tables_read(request["graph"], request["properties"]["tarn.model"], self._pinned)
        reads = ",".join(f"{table}@{self._pinned[table]}" for table in sorted(read - {name}))
        release = self._rebuilt or self._before
        told = {READS: reads, "tarn.after_release": str(release.number if release else 0)}
        shape = [request.get(key) for key in _SHAPE]
        if file := request.get("file"):
            told[MADE_OF] = digest([file, shape])
        elif request["repeatable"]:
            versions = {
                k: v for k, v in self._pinned.copy().items() if k not in {*self._views, name}
            }
            made_of = fingerprint(self._cursor.own, request["sql"], versions, self._views, shape)
            told |= {MADE_OF: made_of} if made_of else {}
        return told

    def _blocks(self, name: str, request: dict[str, Any]) -> set[str]:
        """Source tables that wait for somebody to look at their drift. What is made of them stays
        as it is: of old rows of these and new rows of others it would agree with neither."""
        if self._rebuilt or name not in self._pinned or not request.get("released", True):
            return set()
        return sources_of(request["graph"], [request["properties"]["tarn.model"]]) & self._blocked

    def _is_unchanged(self, name: str, request: dict[str, Any]) -> bool:
        """Whether the table's rows came of the same query over the same versions of its sources."""
        made_of = request["properties"].get(MADE_OF)
        if not made_of or request["full_refresh"] or name in self._views:
            return False
        if name not in self._pinned:
            return False
        history = self._table(name, self._pinned[name]).history(_UPKEEP_AT_MOST)
        rows_from = next((commit for commit in history if UPKEEP not in commit), {})
        return bool(rows_from.get(MADE_OF) == made_of)

    def _describe(self, name: str, request: dict[str, Any]) -> None:
        """Say of the table just written what its model says, where the write did not."""
        if name not in self._marks:
            return
        with self._turns.alone():
            table = self._table(name)
            said = request["description"], request["comments"]
            if not describe(table, *said, self._marks[name]):
                return
        if name in self._written:
            self._written[name] = replace(self._written[name], version=table.version())
        self._show(self._cursor.own, name)

    def _misfits(self, name: str, request: dict[str, Any]) -> list[str]:
        """Columns of the query, which the table has, whose values its types cannot hold."""
        cursor: duckdb.DuckDBPyConnection = self._cursor.own
        none = cursor.execute(f"select * from ({request['sql']}) limit 0").to_arrow_table()
        incoming = deltable(none.schema, name)
        kept = pa.schema(self._table(name).schema().to_arrow())
        both = [field for field in incoming if field.name in kept.names]
        return [f.name for f in both if not loses_nothing(f.type, kept.field(f.name).type)]

    def _remember_view(self, name: str, request: dict[str, Any]) -> None:
        views.remember(self._lake, name, request["sql"], request.get("comments", ""))
        self._views[name] = request["sql"]

    def _forget_view(self, name: str, _: dict[str, Any]) -> None:
        if name in self._views:
            views.forget(self._lake, name)
            del self._views[name]

    def _publish(self, _: str, request: dict[str, Any]) -> str:
        build = Build(self._pinned, self._written, self._before, self._rebuilt, self._kept)
        return publish(self._lake, request, build)

    def _measure_tables(self, _: str, request: dict[str, Any]) -> None:
        """Fill `lake_tables` with what each table comes to, `lake_comments` with its columns'."""
        tables = {name: self._table(name) for name in self._pinned}
        cursor: duckdb.DuckDBPyConnection = self._cursor.own
        if rows := [[*name.split("."), *_measures(table)] for name, table in tables.items()]:
            cursor.executemany("insert into lake_tables values (?, ?, ?, ?, ?, ?, ?)", rows)
        if said := [[*name.split("."), *c] for name, t in tables.items() for c in comments(t)]:
            cursor.executemany("insert into lake_comments values (?, ?, ?, ?)", said)

    def _table(self, name: str, version: int | None = None) -> DeltaTable:
        table = self._lake.table(name, version)
        assert table is not None
        return table


def _measures(table: DeltaTable) -> list[Any]:
    files = data_files(table)
    size, version = sum(file.size for file in files), table.version()
    return [table.metadata().description, version, row_count(table), size, len(files)]


_WRITE_OPTIONS = (
    "keys", "partition_by", "where", "evolve", "not_null", "description", "comments", "properties",
    "deleted",
)  # fmt: skip
_SHAPE = ("partition_by", "comments", "description", "not_null")
"""What shapes a table beside its query."""
MADE_OF = "tarn.made_of"
_UPKEEP_AT_MOST = 10
"""So many commits back, past those of upkeep, the one that made the rows is looked for."""
_BATCH_ROWS = 32_768
"""Rows that DuckDB hands over at a time: larger batches took 100 MB more, and no less time."""
_MOST_KEYS = 1000
"""Above so many distinct keys a predicate costs more than rewriting the table."""


def _replace_keys(
    cursor: duckdb.DuckDBPyConnection, name: str, request: dict[str, Any]
) -> dict[str, Any]:
    """How to put the query's rows in place of all rows that share a key with one of them."""
    cursor.execute(f"create or replace temp table incoming as {request['sql']}")
    keys = request["keys"]
    listed = ", ".join(quoted(key) for key in keys)
    distinct = cursor.execute(f"select distinct {listed} from incoming limit {_MOST_KEYS + 1}")
    found = distinct.fetchall()
    if not found:
        return {"mode": "append", "sql": "select * from incoming"}
    if len(found) <= _MOST_KEYS:
        where = any_of(keys, found)
        return {"mode": "replace_where", "where": where, "sql": "select * from incoming"}
    same = " and ".join(f"k.{quoted(k)} is not distinct from i.{quoted(k)}" for k in keys)
    others = f"select * from {identifier(name)} k where not exists (from incoming i where {same})"
    return {"mode": "replace", "sql": f"{others} union all by name select * from incoming"}
