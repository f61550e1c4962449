"""Which tables are loaded, under which names, and how: what is declared, and what is left to the
database.

A cursor is chosen by itself only where it cannot pass over a change in silence: an instant that is
never null, in a table with a key, whose name says that it is that of the last change. The time a
row was made and a number that counts rows tell nothing of changes.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.sql_database import SqlSystem, SqlTable
from tarn.ingestion.names import lake_names
from tarn.ingestion.sources.sql_database.found import Database, Found, Place
from tarn.ingestion.sources.sql_database.names import table_names
from tarn.strict_yaml import nearest

_CHANGED = re.compile(
    r"(last_)?(updated?|modified|modification|changed?)(_(at|on|time|date|datetime|timestamp|utc))*"
    r"|(date|time)_(last_)?(updated|modified|changed)"
)
"""Names of a column that tells when a row was last changed."""
OVERLAP = "1h"
"""Of a cursor that nobody declared: rows are stamped before their transaction ends."""
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Choice:
    """One table to load."""

    spec: SqlTable
    """Complete: what was left open is what the database says."""
    found: Found | None
    failure: Exception | None = None
    """Why it cannot be read, if it cannot."""


def choices(declared: Declared, database: Database) -> dict[str, Choice]:
    """The tables to load by their names in the lake. A table that is not there or cannot be
    described is among them, with the failure: the others are loaded all the same."""
    system = declared.system
    assert isinstance(system, SqlSystem)
    chosen: dict[str, Choice] = {}
    places: dict[str, Place] = {}
    for name, spec in system.tables.items():
        try:
            places[name] = _place(name, spec, database)
        except LookupError as error:
            where = declared.file.where("tables", name)
            chosen[name] = Choice(spec, None, TarnError(str(error.args[0]), where))
    specs = {name: system.tables[name] for name in places}
    for name, place in _included(system, database, places.values()).items():
        places[name] = place
        specs[name] = SqlTable(table=place[1], schema=place[0])
    described = database.describe(places.values())
    for name, place in places.items():
        chosen[name] = _choice(name, specs[name], described.get(place), declared)
    return {name: chosen[name] for name in dict.fromkeys([*system.tables, *chosen])}


def offered_choices(declared: Declared, database: Database) -> dict[str, Choice]:
    """All tables and views of the connection's own schema, or of all where that has none."""
    places = database.matching(["*"]) or database.matching(["*.*"])
    named = dict(zip(table_names(places, database.default), places, strict=True))
    described = database.describe(places)
    return {
        name: _choice(name, SqlTable(table=place[1], schema=place[0]), described[place], declared)
        for name, place in named.items()
        if isinstance(described.get(place), Found)
    }


def _place(name: str, spec: SqlTable, database: Database) -> Place:
    """Where a declared table is. A key finds a table whose name in snake case it is."""
    schema, wanted = spec.db_schema or database.default, spec.table or name
    if database.engine.dialect.name == "sqlite" and schema == "main":
        schema = None
    places = database.places(schema)
    if (schema, wanted) in places:
        return schema, wanted
    spelt = lake_names([each for _, each in places])
    alike = [place for place, each in zip(places, spelt, strict=True) if each == wanted]
    if len(alike) == 1 and not spec.table:
        return alike[0]
    known = [each for _, each in places]
    inside = f"schema {schema} of the database" if spec.db_schema else "database"
    raise LookupError(f"the {inside} has no table {wanted!r}{nearest(wanted, known)}")


def _included(
    system: SqlSystem, database: Database, declared: Collection[Place]
) -> dict[str, Place]:
    """Tables that the patterns find and nobody has declared."""
    left_out = set(database.matching(system.exclude)) if system.exclude else set()
    found = [place for place in database.matching(system.include) if place not in left_out]
    named = dict(zip(table_names(found, database.default), found, strict=True))
    fresh = {name: place for name, place in named.items() if place not in declared}
    taken = [name for name in fresh if name in system.tables]
    for name in taken:
        schema = lake_names([str(fresh[name][0] or "main")])[0]
        fresh[f"{schema}__{name}"] = fresh.pop(name)
    return fresh


def _choice(
    name: str, spec: SqlTable, found: Found | Exception | None, declared: Declared
) -> Choice:
    where = declared.file.where("tables", name)
    if not isinstance(found, Found):
        return Choice(spec, None, found or TarnError("the table is gone", where))
    if not found.columns:
        return Choice(spec, found, TarnError("the table has no columns", where, "exclude it"))
    try:
        return Choice(_completed(spec, found), found)
    except ValueError as error:
        return Choice(spec, found, TarnError(str(error), where))


def _completed(spec: SqlTable, found: Found) -> SqlTable:
    """The declaration with what it leaves to the database. Raises ValueError for a mistake."""
    if not spec.is_open and spec.write != "merge":
        return spec
    key = spec.primary_key or found.key
    if not key:
        if spec.is_open and not spec.cursor and spec.overlap is None:
            return spec.model_copy(update={"write": "replace"})
        raise ValueError("the database knows no key of the table; add primary_key or write: append")
    if spec.allow_empty and spec.is_open:
        return spec
    chosen: dict[str, Any] = {"write": "merge", "primary_key": key}
    if not spec.cursor and (cursor := cursor_of(found, key)):
        chosen |= {"cursor": cursor, "overlap": OVERLAP if spec.overlap is None else spec.overlap}
    return spec.model_copy(update=chosen)


def cursor_of(found: Found, key: Collection[str]) -> str | None:
    """The one column that tells when a row was last changed, if there is just one."""
    named = [
        name
        for name, column in found.columns.items()
        if isinstance(column.type, sa.DateTime)
        and not column.nullable
        and name not in key
        and _CHANGED.fullmatch(name)
    ]
    return named[0] if len(named) == 1 else None


def before(since: Any, overlap: str | int | None) -> Any:
    """The value from which on rows are read again. Raises ValueError if an overlap cannot be
    taken from it."""
    if overlap is None:
        return since
    is_count = isinstance(since, int | float | Decimal)
    if isinstance(overlap, int) and is_count:
        return since - overlap
    if isinstance(overlap, str) and isinstance(since, date):
        span = timedelta(**{_UNITS[overlap[-1]]: int(overlap[:-1])})
        if not isinstance(since, datetime):
            span = -(-span // timedelta(days=1)) * timedelta(days=1)
        return since - span if since - type(since).min > span else since
    raise ValueError(f"overlap: {overlap} cannot be taken from the cursor's value {since!r}")
