"""Whether a query would give the same rows again: a fingerprint of all that its result is made of.

Equal fingerprints mean equal rows: the same SQL, through views, over the same versions of the same
tables, on the same DuckDB. A query gets none if anything else may have a say in it: the clock,
chance, a file, a function that DuckDB did not bring.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import duckdb

_ROW_MAKERS = {"range", "generate_series", "unnest"}
"""Table functions that read nothing."""
_TOLD_BY_THE_SESSION = {
    "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "today",
    "now", "user", "current_user", "session_user", "current_role", "current_catalog",
    "current_database", "current_schema",
}  # fmt: skip
"""Functions that SQL lets one call like a column."""


def fingerprint(
    cursor: duckdb.DuckDBPyConnection,
    sql: str,
    versions: Mapping[str, int],
    views: Mapping[str, str],
    also: object,
) -> str | None:
    """The fingerprint of a query's result; None if the same query may give other rows.

    versions: of the tables the query may read, by `schema.table`. views: queries of views, by
    the same. also: whatever else shapes what is written, as JSON could hold it.
    """
    parts: list[object] = [duckdb.__version__, also]
    waiting, seen = [sql], set[str]()
    while waiting:
        query = waiting.pop()
        parsed = cursor.execute("select json_serialize_sql(?)", [query]).fetchone()
        tree = json.loads(parsed[0] if parsed else "{}")
        if tree.get("error") or not _is_repeatable(tree):
            return None
        parts.append(query)
        for name in sorted(_relations(tree) - seen):
            seen.add(name)
            if name in versions:
                parts.append([name, versions[name]])
            elif name in views:
                waiting.append(views[name])
            else:
                return None
    return digest(parts)


def digest(parts: object) -> str:
    """The fingerprint of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _relations(tree: Any) -> set[str]:
    """`schema.table` of what a query reads. A name without schema is a CTE's."""
    bases = (node for node in _nodes(tree) if node.get("type") == "BASE_TABLE")
    named = {(node["schema_name"], node["table_name"]) for node in bases}
    ctes = {cte["key"] for node in _nodes(tree) for cte in node.get("cte_map", {}).get("map", ())}
    return {f"{schema}.{table}" for schema, table in named if schema or table not in ctes}


def _is_repeatable(tree: Any) -> bool:
    for node in _nodes(tree):
        if node.get("type") == "TABLE_FUNCTION":
            if node["function"]["function_name"] not in _ROW_MAKERS:
                return False
        elif node.get("class") == "FUNCTION":
            if node["function_name"] not in _constant_functions():
                return False
        elif node.get("class") == "COLUMN_REF":
            names = node["column_names"]
            if len(names) == 1 and names[0].lower() in _TOLD_BY_THE_SESSION:
                return False
    return True


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(child, dict | list):
            yield from _nodes(child)


@cache
def _constant_functions() -> frozenset[str]:
    """DuckDB's own functions that give the same for the same, now and later."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "select function_name from duckdb_functions()"
            " where internal and function_type in ('scalar', 'aggregate', 'macro')"
            " group by function_name"
            " having bool_and(coalesce(stability, 'CONSISTENT') = 'CONSISTENT')"
        ).fetchall()
    return frozenset(name for (name,) in rows) - _TOLD_BY_THE_SESSION | _ROW_MAKERS
