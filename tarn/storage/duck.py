"""DuckDB as a reader of the lake: its extensions, its credentials, and SQL that reads a table."""

import importlib.util
import json
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.storage.lake import Lake
from tarn.storage.s3 import DUCKDB_VARIABLES, REQUEST_SECONDS, RETRIES
from tarn.storage.soundness import refusal

FOOTERS_AT_ONCE = 64
"""Up to so many files are listed in the SQL itself; each is opened when a query is planned."""
_PARTITION_TYPES = {pa.int32(): "integer", pa.int64(): "bigint", pa.date32(): "date"}
"""Partition columns whose values stand in a file's path as they are."""
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_ROOT = re.compile(r"/[\w/. ,+&@-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.=/-]+")
"""Paths that mean to DuckDB what they say: no pattern, no `name=value` above the table."""


def prepare(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Make a connection read the lake: UTC clock, the Delta extension, and S3 where it lives."""
    for statement in ("set enable_progress_bar = false", *preparation(lake)):
        connection.execute(statement)


def session(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A connection for the engine's own short work on a lake; close it when done.

    Those of one process share a DuckDB: loading the Delta extension takes longer than the work.
    """
    return _database(lake.root, lake.work_dir).cursor() if lake.is_local else opened(lake)


@cache
def _database(root: str, work_dir: Path) -> duckdb.DuckDBPyConnection:
    return opened(Lake(root, work_dir=work_dir))


def opened(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A DuckDB of its own that reads the lake, in little memory; rows come in no order."""
    connection = duckdb.connect()
    prepare(connection, lake)
    spill = lake.work_dir.absolute() / "spill"
    spill.parent.mkdir(parents=True, exist_ok=True)
    connection.execute(f"set temp_directory = {literal(str(spill))}; set memory_limit = '500MB'")
    connection.execute("set preserve_insertion_order = false")
    return connection


def preparation(lake: Lake) -> list[str]:
    """The statements that do so. They hold credentials: for this process only."""
    return [*_extensions(lake), *([secret(lake)] if lake.service else [])]


def client(lake: Lake) -> tuple[list[str], dict[str, str]]:
    """Statements that prepare DuckDB's command line, and variables by which it gets credentials.

    Every user of a machine sees the arguments of a command; its variables only its owner.
    """
    if lake.service is None:
        return _extensions(lake), {}
    keys = {name: f"getenv({literal(name)})" for name in DUCKDB_VARIABLES.values()}
    found = lake.service.keys().variables()
    return [*_extensions(lake), _secret(lake, {n: keys[n] for n in found})], found


def _extensions(lake: Lake) -> list[str]:
    # Global, so that cursors of the connection have it too.
    statements = ["set global TimeZone = 'UTC'", *_load("delta")]
    return statements + ([*_load("httpfs"), *_http()] if lake.service else [])


def extension_path(name: str) -> Path | None:
    """The extension file that the package `duckdb-extension-<name>` carries, if installed."""
    package = importlib.util.find_spec(f"duckdb_extension_{name}")
    if package is None or not package.submodule_search_locations:
        return None
    files = f"extensions/v{duckdb.__version__}/*.duckdb_extension"
    return next(Path(package.submodule_search_locations[0]).glob(files), None)


def _load(name: str) -> list[str]:
    """Load an extension from its installed package; without one, as DuckDB itself does."""
    path = extension_path(name)
    return [f"load {literal(str(path))}"] if path else [f"install {name}", f"load {name}"]


def select_from(table: DeltaTable, listed_files: int = FOOTERS_AT_ONCE) -> str:
    """SQL that reads a Delta table at exactly the version `table` is at.

    A few plain local files are listed by name: that needs no extension, so any DuckDB client
    opens it, and plans three times faster. Else `delta_scan` reads the log. Same rows either way.
    """
    listed = _files(table, listed_files)
    if listed is not None:
        columns = ", ".join(quoted(field.name) for field in table.schema().fields)
        return f"select {columns} from {listed}"
    return f"select * from delta_scan({literal(table.table_uri)}, version => {table.version()})"


def show(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> None:
    """Make the view `schema.table`, or make it anew. Raises TarnError if DuckDB cannot read it."""
    connection.execute(f"create schema if not exists {identifier(name.partition('.')[0])}")
    try:
        connection.execute(f"create or replace view {identifier(name)} as {sql}")
    except duckdb.Error as error:
        raise refusal(name, error) from error


def select_failure(failure: TarnError) -> str:
    """SQL of a view in place of a table that cannot be read: every query of it fails and says why.

    Its one column is named by the reason, as DuckDB tells the columns there are to a query that
    names another.
    """
    told = literal(str(failure))
    reason = quoted(f"unreadable: {failure.what}")
    return f"select {reason} from (select error({told}) as {reason}) where {reason} is not null"


def stream(connection: duckdb.DuckDBPyConnection, sql: str, batch_rows: int) -> Any:
    """The rows of a query as Arrow batches, made while they are read (a RecordBatchReader).

    DuckDB 1.5.5 never ends when the result of a UNION ALL over joins is streamed and is larger
    than its buffer; such a query is first collected, on disk if need be. To be dropped with a
    DuckDB under which the first case of test_duck.py ends without it.
    """
    plan = connection.execute(f"explain (format json) {sql}").fetchall()[0][1]
    if '"UNION"' in plan:
        sql = f"with collected as materialized ({sql}) select * from collected"
    return connection.execute(sql).to_arrow_reader(batch_rows)


def literal(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """`name` as an SQL name, `schema.table` part by part."""
    return ".".join(quoted(part) for part in name.split("."))


def quoted(name: str) -> str:
    """One SQL name as it is, dots and quotes included: a column's."""
    return '"' + name.replace('"', '""') + '"'


def _files(table: DeltaTable, most: int) -> str | None:
    """The table as a `read_parquet` of its files, where that reads exactly the same rows."""
    root = unquote(table.table_uri.removeprefix("file://")).rstrip("/")
    if not _ROOT.fullmatch(root) or not _is_plain(table):
        return None
    schema = pa.schema(table.schema().to_arrow())
    partitions = table.metadata().partition_columns
    types = {name: _PARTITION_TYPES.get(schema.field(name).type) for name in partitions}
    paths = _paths(table, partitions, most) if all(types.values()) else []
    files = [f"{root}/{path}" for path in paths]
    stored = {field.name: _shape(field.type) for field in schema if field.name not in types}
    has = _columns(files, stored)
    if not has or set().union(*has) != stored.keys():
        return None
    options = ["hive_partitioning = false"]
    if types:
        hive = ", ".join(f"{literal(name)}: {kind}" for name, kind in types.items())
        options = [f"hive_partitioning = true, hive_types = {{{hive}}}"]
    if len(has) > 1:
        options.append("union_by_name = true")
    listed = ", ".join(literal(file) for file in files)
    return f"read_parquet({', '.join([f'[{listed}]', *options])})"


def _is_plain(table: DeltaTable) -> bool:
    """Whether data files hold the rows as they are: neither deletion vectors nor mapped columns."""
    protocol = table.protocol()
    features = set(protocol.reader_features or ()) - {"timestampNtz"}
    return protocol.min_reader_version != 2 and not features


def _paths(table: DeltaTable, partitions: Sequence[str], most: int) -> list[str]:
    """The data files in the table's folder; none when there are more, or when a path does not
    spell the file's partition values in the one way that DuckDB reads alike."""
    columns = ["path", "partition"] if partitions else ["path"]
    files = pa.table(table.get_add_actions()).select(columns).to_pylist()
    if len(files) > most:
        return []
    for file in files:
        values = file.get("partition", {})
        folders = [f"{p}={_NO_VALUE if values[p] is None else values[p]}" for p in partitions]
        folder, _, base = file["path"].rpartition("/")
        if folder != "/".join(folders) or not _PLAIN.fullmatch(f"{folder}{base}"):
            return []
    return [file["path"] for file in files]


def _columns(files: Sequence[str], stored: Mapping[str, str]) -> set[frozenset[str]]:
    """Which columns the files have; nothing if one has another type or another column.

    A file of before a column was added may lack it.
    """
    has = set()
    for file in files:
        found = _stored(file)
        if found is None or not found.items() <= stored.items():
            return set()
        has.add(frozenset(found))
    return has


@lru_cache(4096)
def _stored(file: str) -> Mapping[str, str] | None:
    """The columns of a data file, which never changes; None if one is of Spark's old times."""
    with pq.ParquetFile(file) as opened:
        kinds = {opened.schema.column(i).physical_type for i in range(len(opened.schema))}
        shapes = {field.name: _shape(field.type) for field in opened.schema_arrow}
    return None if "INT96" in kinds else shapes


def _shape(kind: pa.DataType) -> str:
    """A type as DuckDB reads it: whatever its encoding, and the names inside lists and maps."""
    if pa.types.is_dictionary(kind):
        return _shape(kind.value_type)
    if pa.types.is_map(kind):
        return f"map<{_shape(kind.key_type)}, {_shape(kind.item_type)}>"
    if pa.types.is_struct(kind):
        fields = (f"{json.dumps(field.name)}: {_shape(field.type)}" for field in kind)
        return f"struct<{', '.join(fields)}>"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return f"list<{_shape(kind.value_type)}>"
    return str(kind).removeprefix("large_").removesuffix("_view")


def _http() -> list[str]:
    """A server that does not answer fails a query after seconds."""
    return [
        f"set http_timeout = {REQUEST_SECONDS}",
        f"set http_retries = {RETRIES}",
        "set http_retry_wait_ms = 100",
    ]


def secret(lake: Lake) -> str:
    """The statement that gives DuckDB the lake's credentials as they are now."""
    assert lake.service
    found = lake.service.keys().variables()
    return _secret(lake, {name: literal(value) for name, value in found.items()})


class Renewal:
    """Keeps the credentials of one DuckDB those that the lake has now; safe among threads."""

    def __init__(self, lake: Lake) -> None:
        self._lake, self._last, self._turn = lake, "", threading.Lock()

    def __call__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Give them to the DuckDB of a connection or cursor, if they changed."""
        if self._lake.service is None:
            return
        with self._turn:
            now = secret(self._lake)
            if now != self._last:
                connection.execute(now)
                self._last = now


def _secret(lake: Lake, keys: Mapping[str, str]) -> str:
    """With credentials, by variable, as SQL expressions."""
    assert lake.service
    options = {key: literal(value) for key, value in lake.service.duckdb_options().items()}
    options |= {key: keys[name] for key, name in DUCKDB_VARIABLES.items() if name in keys}
    given = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"create or replace secret lake (type s3, scope {literal(lake.root)}, {given})"
