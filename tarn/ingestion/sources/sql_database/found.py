"""What a database says of its tables: which there are, their columns, keys and comments."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine.reflection import Inspector, ObjectKind, ObjectScope

from tarn.errors import TarnError
from tarn.ingestion.names import lake_names
from tarn.ingestion.sources.sql_database.addresses import opened

Place: TypeAlias = tuple[str | None, str]
"""Schema and name of a table in the database. SQLite's have no schema."""

_OWN = {
    "information_schema",
    "performance_schema",
    "mysql",
    "sys",
    "pg_catalog",
    "INFORMATION_SCHEMA",
}
"""Schemas of databases themselves."""


@dataclass(frozen=True)
class Found:
    """A table or view."""

    table: sa.Table
    columns: Mapping[str, sa.Column[Any]]
    """By their names in the lake."""
    key: tuple[str, ...]
    """Columns that the database keeps unique and not null: the primary key, or the unique index
    of the fewest columns. Names in the lake."""

    @property
    def comment(self) -> str:
        return self.table.comment or ""

    def keeps_unique(self, key: Sequence[str]) -> bool:
        """Whether the database itself keeps these columns unique."""
        return bool(self.key) and set(self.key) <= set(key)


class Database:
    """A database, asked when first needed."""

    def __init__(self, engine: sa.Engine, where: str) -> None:
        self.engine, self.where = engine, where

    @cached_property
    def default(self) -> str | None:
        """The schema of tables that are named without one."""
        return None if self.engine.dialect.name == "sqlite" else self._about[0]

    @cached_property
    def version(self) -> str:
        """What the server calls itself."""
        return self._about[1]

    @cached_property
    def _about(self) -> tuple[str | None, str]:
        with opened(self.engine, self.where) as connection:
            schema = connection.dialect.default_schema_name
            version = connection.dialect.server_version_info or ()
            return schema, ".".join(map(str, version))

    @cached_property
    def schemas(self) -> list[str]:
        """All but the database's own."""
        with opened(self.engine, self.where) as connection:
            return [n for n in sa.inspect(connection).get_schema_names() if n not in _OWN]

    def places(self, schema: str | None) -> list[Place]:
        """Tables and views of a schema. Partitions of a table, and what an extension brought,
        are parts of something else."""
        if schema is None and self.engine.dialect.name in ("mysql", "mariadb"):
            fix = "add it to the address, or say schema: and patterns such as sales.*"
            raise TarnError("the address names no database", self.where, fix)
        if schema not in self._listed:
            with opened(self.engine, self.where) as connection:
                self._listed[schema] = self._list(connection, schema)
        return self._listed[schema]

    @cached_property
    def _listed(self) -> dict[str | None, list[Place]]:
        return {}

    def _list(self, connection: sa.Connection, schema: str | None) -> list[Place]:
        inspector = sa.inspect(connection)
        names = [*inspector.get_table_names(schema), *inspector.get_view_names(schema)]
        if connection.dialect.name == "postgresql":
            found = connection.execute(_POSTGRES_TABLES, {"schema": schema})
            names = [name for (name,) in found]
        elif schema is not None:
            names += _materialized(inspector, schema)
        return [(schema, name) for name in sorted(set(names))]

    def matching(self, patterns: Sequence[str]) -> list[Place]:
        """Tables and views that a pattern names, in no order but their own."""
        found: dict[Place, None] = {}
        for pattern in patterns:
            schema, dot, table = pattern.rpartition(".")
            schemas: Collection[str | None] = [self.default]
            if dot:
                schemas = [n for n in self.schemas if fnmatchcase(n, schema)]
            if self.default is None and "main" in schemas:
                schemas = [None]
            for each in schemas:
                names = self.places(each)
                found |= dict.fromkeys(p for p in names if fnmatchcase(p[1], table))
        return list(found)

    def describe(self, places: Collection[Place]) -> dict[Place, Found | Exception]:
        """What the database says of each table, or why it says nothing."""
        described: dict[Place, Found | Exception] = {}
        with opened(self.engine, self.where) as connection, warnings.catch_warnings():
            # Types that SQLAlchemy does not know are read as the database's own text.
            warnings.simplefilter("ignore", sa.exc.SAWarning)
            inspector = sa.inspect(connection)
            for schema in {schema for schema, _ in places}:
                names = [name for place, name in places if place == schema]
                described |= _described(inspector, schema, names)
            if connection.dialect.name == "postgresql" and places:
                described = _without_inherited(connection, described)
        return described


def _materialized(inspector: Inspector, schema: str) -> list[str]:
    try:
        return inspector.get_materialized_view_names(schema)
    except NotImplementedError:
        return []


def _described(
    inspector: Inspector, schema: str | None, names: Sequence[str]
) -> dict[Place, Found | Exception]:
    try:
        return _all_at_once(inspector, schema, names)
    except sa.exc.SQLAlchemyError as error:
        if len(names) == 1:
            return {(schema, names[0]): error}
    # One that cannot be described, as a view of a table that is gone, hides the others.
    return {
        place: found
        for name in names
        for place, found in _described(inspector, schema, [name]).items()
    }


def _all_at_once(
    inspector: Inspector, schema: str | None, names: Sequence[str]
) -> dict[Place, Found | Exception]:
    inspector.clear_cache()
    which: dict[str, Any] = {
        "schema": schema,
        "filter_names": names,
        "kind": ObjectKind.ANY,
        "scope": ObjectScope.ANY,
    }
    columns = inspector.get_multi_columns(**which)
    primary: Mapping[Any, Any] = inspector.get_multi_pk_constraint(**which)
    indexes = inspector.get_multi_indexes(**which)
    constraints = inspector.get_multi_unique_constraints(**which)
    comments: Mapping[Any, Any] = {}
    if inspector.dialect.supports_comments:
        comments = inspector.get_multi_table_comment(**which)
    return {
        place: _found(
            place,
            columns[place],
            primary.get(place, {}).get("constrained_columns") or (),
            [*(indexes.get(place) or ()), *(constraints.get(place) or ())],
            comments.get(place, {}).get("text"),
        )
        for place in columns
    }


def _found(
    place: Place,
    columns: Sequence[Any],
    primary: Sequence[str],
    unique: Sequence[Any],
    comment: str | None,
) -> Found:
    schema, name = place
    made = [
        sa.Column(
            column["name"],
            column["type"],
            nullable=column["nullable"],
            comment=column.get("comment"),
            info={"default": str(column.get("default") or "")},
        )
        for column in columns
    ]
    table = sa.Table(name, sa.MetaData(), *made, schema=schema, comment=comment, quote=True)
    spelt = lake_names([column.name for column in made])
    named = dict(zip(spelt, table.columns, strict=True))
    key = primary or _shortest(unique, {c.name for c in made if not c.nullable})
    lake_name = {column.name: spelling for spelling, column in named.items()}
    return Found(table, named, tuple(lake_name[each] for each in key))


def _shortest(unique: Sequence[Any], not_null: Collection[str]) -> Sequence[str]:
    """The columns of a unique index that covers each row of the table as a whole."""
    keys = [
        each["column_names"]
        for each in unique
        if each.get("unique", True)
        and set(each["column_names"]) <= set(not_null)
        and not _is_partial(each.get("dialect_options") or {})
    ]
    return min(keys, key=lambda names: (len(names), names), default=())


def _is_partial(options: Mapping[str, Any]) -> bool:
    """Whether an index leaves out rows, or looks at the beginning of a text only."""
    return any(name.endswith(("_where", "_length")) and value for name, value in options.items())


def _without_inherited(
    connection: sa.Connection, described: dict[Place, Found | Exception]
) -> dict[Place, Found | Exception]:
    """A key holds in one table; those that inherit from it, whose rows it shows, may repeat it."""
    parents = {tuple(row) for row in connection.execute(_POSTGRES_PARENTS)}
    return {
        place: Found(found.table, found.columns, ())
        if isinstance(found, Found) and place in parents
        else found
        for place, found in described.items()
    }


_POSTGRES_TABLES = sa.text("""
    select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = :schema and c.relkind in ('r', 'p', 'v', 'm', 'f')
        and not c.relispartition
        and not exists (
            select 1 from pg_depend d
            where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
        )
""")
_POSTGRES_PARENTS = sa.text("""
    select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and exists (select 1 from pg_inherits i where i.inhparent = c.oid)
""")
