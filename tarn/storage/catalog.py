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
            _add_release(connection, release, lake)
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)
    return final


def ensure(lake: Lake) -> Path:
    """The catalog of the current release, made when it is missing or shows another release."""
    release = current(lake)
    if release is None:
        raise TarnError("there is no release to read yet", lake.root, "run tarn run or dbt build")
    file = path(lake)
    if not (file.exists() and _shows(file, release, lake)):
        build(lake, release)
    return file


def connect() -> duckdb.DuckDBPyConnection:
    """A read-only connection to the current release."""
    lake = Lake.open(settings())
    connection = duckdb.connect(str(ensure(lake)), read_only=True)
    prepare(connection, lake)
    return connection


def _shows(file: Path, release: Release, lake: Lake) -> bool:
    """Whether a catalog is of that release and of the lake where it is now."""
    try:
        with duckdb.connect(str(file), read_only=True) as connection:
            row = connection.execute("select number, root from tarn.catalog").fetchone()
    except duckdb.Error:
        return False
    return row == (release.number, lake.root)


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


def _add_release(connection: duckdb.DuckDBPyConnection, release: Release, lake: Lake) -> None:
    connection.execute("create schema if not exists tarn")
    connection.execute("create table tarn.catalog (number bigint, made_at timestamp, root varchar)")
    made = [release.number, release.made_at[:19], lake.root]
    connection.execute("insert into tarn.catalog values (?, ?, ?)", made)
    connection.execute(
        "create table tarn.release"
        " (schema_name varchar, table_name varchar, version bigint, row_count bigint)"
    )
    rows = [[*name.split("."), pin.version, pin.rows] for name, pin in release.tables.items()]
    if rows:
        connection.executemany("insert into tarn.release values (?, ?, ?, ?)", rows)
