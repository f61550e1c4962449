"""DuckDB as a reader of the lake: its extensions, its credentials, and SQL that reads a table."""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from tarn.settings import settings
from tarn.storage.lake import Lake

FOOTERS_AT_ONCE = 64
"""Up to so many files are listed in the SQL itself; each is opened when a query is planned."""
_PARTITION_TYPES = {pa.int32(): "integer", pa.int64(): "bigint", pa.date32(): "date"}
"""Partition columns whose values stand in a file's path as they are."""


def prepare(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Make a connection read the lake: UTC clock, the Delta extension, and S3 where it lives."""
    for statement in ("set enable_progress_bar = false", *preparation(lake)):
        connection.execute(statement)


def session(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A connection for the engine's own short work on a lake; close it when done.

    Those of one process share a DuckDB: loading the Delta extension takes longer than the work.
    """
    return _database(lake.root).cursor() if lake.is_local else _opened(lake)


@cache
def _database(root: str) -> duckdb.DuckDBPyConnection:
    return _opened(Lake(root))


def _opened(lake: Lake) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    prepare(connection, lake)
    spill = settings().work_dir / "spill"
    connection.execute(f"set temp_directory = {literal(str(spill))}; set memory_limit = '500MB'")
    connection.execute("set preserve_insertion_order = false")
    return connection


def preparation(lake: Lake) -> list[str]:
    """The statements that do so, for clients of any kind."""
    statements = ["set TimeZone = 'UTC'", *_load("delta")]
    if not lake.is_local:
        statements += [*_load("httpfs"), _s3_secret(lake.root, lake.options)]
    return statements


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


def select_from(table: DeltaTable) -> str:
    """SQL that reads a Delta table at exactly the version `table` is at.

    A few plain local files are listed by name: that needs no extension, so any DuckDB client
    opens it, and plans three times faster. Else `delta_scan` reads the log. Same rows either way.
    """
    listed = _files(table)
    if listed is not None:
        columns = ", ".join(identifier(field.name) for field in table.schema().fields)
        return f"select {columns} from {listed}"
    path = table.table_uri.removeprefix("file://").rstrip("/")
    return f"select * from delta_scan({literal(path)}, version => {table.version()})"


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
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def _files(table: DeltaTable) -> str | None:
    """The table as a `read_parquet` of its files, where that reads exactly the same rows."""
    files = [file.removeprefix("file://") for file in table.file_uris()]
    local = "://" not in table.table_uri or table.table_uri.startswith("file://")
    # Deletion vectors and column mapping make a data file tell less than the table's rows.
    features = set(table.protocol().reader_features or ()) - {"timestampNtz"}
    if not (local and 0 < len(files) <= FOOTERS_AT_ONCE) or features:
        return None
    schema = pa.schema(table.schema().to_arrow())
    partitions = table.metadata().partition_columns
    types = {name: _PARTITION_TYPES.get(schema.field(name).type) for name in partitions}
    columns = [set(pq.read_schema(file).names) for file in files]
    if not all(types.values()) or set().union(*columns, partitions) != set(schema.names):
        return None
    options = []
    if len({frozenset(names) for names in columns}) > 1:
        options.append("union_by_name = true")
    if types:
        hive = ", ".join(f"{literal(name)}: {kind}" for name, kind in types.items())
        options.append(f"hive_partitioning = true, hive_types = {{{hive}}}")
    listed = ", ".join(literal(file) for file in files)
    return f"read_parquet({', '.join([f'[{listed}]', *options])})"


def _s3_secret(scope: str, options: Mapping[str, str]) -> str:
    names = {name.upper(): value for name, value in options.items()}
    endpoint = names.get("AWS_ENDPOINT_URL_S3") or names.get("AWS_ENDPOINT_URL", "")
    wanted = {
        "key_id": names.get("AWS_ACCESS_KEY_ID"),
        "secret": names.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": names.get("AWS_SESSION_TOKEN"),
        "region": names.get("AWS_REGION") or names.get("AWS_DEFAULT_REGION"),
        "endpoint": endpoint.partition("://")[2] or None,
        "url_style": "path" if endpoint else None,
    }
    given = [f"{key} {literal(value)}" for key, value in wanted.items() if value]
    if endpoint.startswith("http://"):
        given.append("use_ssl false")
    return f"create or replace secret lake (type s3, scope {literal(scope)}, {', '.join(given)})"
