"""`catalog.duckdb`: views of every table at the current release, for analysts and servers.

The file is made new for each release and swapped in whole, so it is opened while a build runs
and never half-made. It holds no data and is disposable.
"""

import os
from pathlib import Path

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage.duck import identifier, literal, prepare, select_from
from tarn.storage.lake import Lake
from tarn.storage.releases import Release, current

FILE = "catalog.duckdb"


def path(lake: Lake) -> Path:
    """Where the catalog is: in a local lake, or in the working folder of a distant one."""
    return Path(lake.root if lake.is_local else settings().work_dir) / FILE


def build(lake: Lake, release: Release) -> Path:
    """Write the catalog of a release and put it in place of the one before."""
    final = path(lake)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f"{FILE}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(draft)) as connection:
            prepare(connection, lake)
            for name, pin in release.tables.items():
                table = lake.table(name, pin.version)
                assert table is not None
                _add_view(connection, name, table)
            _add_release(connection, release)
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)
    return final


def connect() -> duckdb.DuckDBPyConnection:
    """A read-only connection to the current release.

    The catalog is made when it is missing or shows another release than the current one.
    """
    lake = Lake.open(settings())
    release = current(lake)
    if release is None:
        raise TarnError("there is no release to read yet", lake.root, "run tarn run or dbt build")
    file = path(lake)
    if not file.exists() or shown(file) != release.number:
        build(lake, release)
    connection = duckdb.connect(str(file), read_only=True)
    prepare(connection, lake)
    return connection


def shown(file: Path) -> int | None:
    """Number of the release that a catalog file shows; None if it is not one of ours."""
    try:
        with duckdb.connect(str(file), read_only=True) as connection:
            row = connection.execute("select max(number) from tarn.release").fetchone()
            return row[0] if row else None
    except duckdb.Error:
        return None


def _add_view(connection: duckdb.DuckDBPyConnection, name: str, table: DeltaTable) -> None:
    view = identifier(name)
    connection.execute(f"create schema if not exists {identifier(name.partition('.')[0])}")
    connection.execute(f"create view {view} as {select_from(table)}")
    if description := table.metadata().description:
        connection.execute(f"comment on view {view} is {literal(description)}")
    for field in pa.schema(table.schema().to_arrow()):
        if comment := (field.metadata or {}).get(b"comment"):
            column = f"{view}.{identifier(field.name)}"
            connection.execute(f"comment on column {column} is {literal(comment.decode())}")


def _add_release(connection: duckdb.DuckDBPyConnection, release: Release) -> None:
    connection.execute("create schema if not exists tarn")
    connection.execute(
        "create table tarn.release (number bigint, made_at timestamp, schema_name varchar,"
        " table_name varchar, version bigint, row_count bigint)"
    )
    rows = [
        [release.number, release.made_at[:19], *name.split("."), pin.version, pin.rows]
        for name, pin in release.tables.items()
    ]
    if rows:
        connection.executemany("insert into tarn.release values (?, ?, ?, ?, ?, ?)", rows)
