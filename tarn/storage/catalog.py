"""`catalog.duckdb`: views of every table at the current release, for analysts and servers.

The file is made new for each release and swapped in whole, so it is opened while a build runs
and never half-made. Tables of tier hot are copied into it; it holds no other data and is
disposable.
"""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import duckdb
from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage import redis_copy
from tarn.storage.datafiles import unnoticed
from tarn.storage.duck import (
    identifier,
    literal,
    prepare,
    quoted,
    select_failure,
    select_from,
    show,
)
from tarn.storage.lake import Lake
from tarn.storage.releases import Release, current, pinned
from tarn.storage.soundness import refusal
from tarn.storage.tables import comments
from tarn.strict_yaml import nearest

log = logging.getLogger(__name__)

FILE = "catalog.duckdb"


def path(lake: Lake) -> Path:
    """Where the catalog is: in a local lake, or in the working folder of a distant one."""
    return Path(lake.root) / FILE if lake.is_local else lake.work_dir / FILE


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
                try:
                    table = pinned(lake, name, pin)
                except TarnError as failure:
                    _add_failure(connection, name, failure)
                else:
                    with unnoticed(lake, table):
                        _add_table(connection, name, table, lake)
            _add_release(connection, release, lake)
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)
    try:
        redis_copy.publish(lake, release)
    except TarnError as failure:
        # The lake has the release; a copy that lags behind is no reason to take it back.
        log.warning("%s", failure)
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
            row = connection.execute("select number, root, hot from tarn.catalog").fetchone()
    except duckdb.Error:
        return False
    return row == (release.number, lake.root, _hot(release, lake))


def native_sizes(lake: Lake) -> dict[str, int]:
    """Bytes of each native copy in the catalog there is."""
    if not path(lake).exists():
        return {}
    sizes: dict[str, int] = {}
    with suppress(duckdb.Error), duckdb.connect(str(path(lake)), read_only=True) as connection:
        row = connection.execute("select hot from tarn.catalog").fetchone()
        for name in json.loads(row[0]) if row else ():
            counted = connection.execute(_BLOCKS, [name]).fetchone()
            sizes[name] = counted[0] if counted else 0
    return sizes


_BLOCKS = """
    with blocks as (
        select unnest(list_append(additional_block_ids, block_id)) as block
        from pragma_storage_info(?)
    )
    select count(distinct block) * (select any_value(block_size) from pragma_database_size())
    from blocks where block >= 0
"""


def _hot(release: Release, lake: Lake) -> str:
    """The hot tables of a release and their keys, as text."""
    policies = {name: lake.policy.of(name) for name in release.tables}
    return json.dumps({n: policy.hot.key for n, policy in policies.items() if policy.tier == "hot"})


def _add_table(
    connection: duckdb.DuckDBPyConnection, name: str, table: DeltaTable, lake: Lake
) -> None:
    """A view of the table; of a hot one a native copy, indexed by its key."""
    policy = lake.policy.of(name)
    kind = "table" if policy.tier == "hot" else "view"
    view = identifier(name)
    connection.execute(f"create schema if not exists {identifier(name.partition('.')[0])}")
    try:
        connection.execute(f"create {kind} {view} as {select_from(table)}")
    except duckdb.Error as error:
        _add_failure(connection, name, refusal(name, error))
        return
    if kind == "table" and policy.hot.key:
        _add_index(connection, name, table, policy.hot.key)
    if description := table.metadata().description:
        connection.execute(f"comment on {kind} {view} is {literal(description)}")
    for column, comment in comments(table):
        connection.execute(f"comment on column {view}.{quoted(column)} is {literal(comment)}")


def _add_failure(connection: duckdb.DuckDBPyConnection, name: str, failure: TarnError) -> None:
    """One table that cannot be read leaves the others to their readers."""
    log.warning("%s", failure)
    show(connection, name, select_failure(failure))


def _add_index(
    connection: duckdb.DuckDBPyConnection, name: str, table: DeltaTable, key: Sequence[str]
) -> None:
    columns = [field.name for field in table.schema().fields]
    for column in key:
        if column not in columns:
            meant = nearest(column, columns)
            log.warning("storage.yml: %s: hot.key: no column %r%s", name, column, meant)
            return
    listed = ", ".join(quoted(column) for column in key)
    index = name.replace(".", " ")
    connection.execute(f"create index {identifier(index)} on {identifier(name)} ({listed})")


def _add_release(connection: duckdb.DuckDBPyConnection, release: Release, lake: Lake) -> None:
    connection.execute("create schema if not exists tarn")
    connection.execute(
        "create table tarn.catalog (number bigint, made_at timestamp, root varchar, hot varchar)"
    )
    made = [release.number, release.made_at[:19], lake.root, _hot(release, lake)]
    connection.execute("insert into tarn.catalog values (?, ?, ?, ?)", made)
    connection.execute(
        "create table tarn.release"
        " (schema_name varchar, table_name varchar, version bigint, row_count bigint)"
    )
    rows = [[*name.split("."), pin.version, pin.rows] for name, pin in release.tables.items()]
    if rows:
        connection.executemany("insert into tarn.release values (?, ?, ?, ?)", rows)
