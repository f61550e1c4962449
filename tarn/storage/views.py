"""The SQL of dbt's views, kept in the lake so that a new DuckDB can show them at once."""

import logging
from contextlib import suppress

import duckdb
import obstore

from tarn.storage.duck import identifier
from tarn.storage.lake import OWN_SCHEMA, Lake

log = logging.getLogger(__name__)

FOLDER = f"{OWN_SCHEMA}/views"
_THEN = "\n;-- described by\n"


def remember(lake: Lake, name: str, sql: str, comments: str = "") -> None:
    """Keep the query of the view `schema.view`, and the statements that describe it."""
    obstore.put(lake.objects, f"{FOLDER}/{name}.sql", f"{sql}{_THEN}{comments}".encode())


def forget(lake: Lake, name: str) -> None:
    """Drop the query of a name that is a view no more."""
    with suppress(FileNotFoundError):
        obstore.delete(lake.objects, f"{FOLDER}/{name}.sql")


def restore(connection: duckdb.DuckDBPyConnection, lake: Lake) -> dict[str, str]:
    """Make every remembered view that can be made; they may read one another in any order.

    Gives the queries of all that are remembered.
    """
    waiting = dict(_remembered(lake))
    queries = {name: text.partition(_THEN)[0] for name, text in waiting.items()}
    while waiting:
        made = [name for name, sql in waiting.items() if _make(connection, name, sql)]
        if not made:
            log.debug("views of tables that are gone: %s", ", ".join(waiting))
            break
        for name in made:
            del waiting[name]
    return queries


def _remembered(lake: Lake) -> list[tuple[str, str]]:
    paths = [entry["path"] for entry in lake.files(FOLDER)]
    return [(_name(path), bytes(lake.objects.get(path).bytes()).decode()) for path in paths]


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".sql")


def _make(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> bool:
    schema = identifier(name.partition(".")[0])
    try:
        connection.execute(f"create schema if not exists {schema}")
        connection.execute(f"create or replace view {identifier(name)} as {sql}")
    except duckdb.Error:
        return False
    return True
