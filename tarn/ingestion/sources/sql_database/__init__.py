"""Databases: whole ones by pattern, or listed tables, each read from its highest cursor on.

PostgreSQL and SQLite are read through ADBC, which hands over Arrow; MySQL and MariaDB as the text
their server writes; any other through SQLAlchemy.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.declarations.sql_database import SqlTable
from tarn.ingestion.landed import Landed
from tarn.ingestion.options import Span
from tarn.ingestion.sources import Extract, Offered, Source
from tarn.ingestion.sources.sql_database.addresses import (
    engine_of,
    opened,
    reason,
    secrets_of,
    shown,
    url_of,
)
from tarn.ingestion.sources.sql_database.choices import (
    Choice,
    before,
    choices,
    offered_choices,
)
from tarn.ingestion.sources.sql_database.found import Database, Found
from tarn.ingestion.sources.sql_database.mysql import MysqlReading
from tarn.ingestion.sources.sql_database.others import OtherReading
from tarn.ingestion.sources.sql_database.postgres import PostgresReading
from tarn.ingestion.sources.sql_database.reading import Reading, Wish
from tarn.ingestion.sources.sql_database.sqlite import SqliteReading
from tarn.ingestion.sources.sql_database.watermarks import watermark
from tarn.ingestion.types import shown as type_name
from tarn.settings import Settings

_READINGS: Mapping[str, type[Reading]] = {
    "postgresql+psycopg": PostgresReading,
    "sqlite": SqliteReading,
    "mysql+pymysql": MysqlReading,
    "mariadb+pymysql": MysqlReading,
}


class SqlDatabase(Source):
    """A database. Its tables are looked up when they are first asked for."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared = declared
        self.where = declared.file.where("connection")
        self.url = url_of(str(declared.system.connection), home.project_dir, self.where)
        self.secrets = secrets_of(self.url)
        self.database = Database(engine_of(self.url, self.where), self.where)

    @property
    def tables(self) -> Mapping[str, Table]:
        return {name: choice.spec for name, choice in self._choices.items()}

    def extract(self, table: str, landed: Landed) -> Extract | None:
        found, spec = self._readable(table)
        return self._query(table, found, spec, landed)

    def check(self) -> list[str]:
        """What it is, and whether its log can be followed."""
        with opened(self.database.engine, self.where) as connection:
            version = f"{connection.dialect.name} {self.database.version}"
            return [f"{shown(self.url)}: {version}", *_about_changes(connection)]

    def offered(self) -> list[Offered]:
        return [
            _offered(name, choice, self._reading(name, choice.found, choice.spec))
            for name, choice in offered_choices(self.declared, self.database).items()
            if choice.found and not choice.failure
        ]

    @cached_property
    def _choices(self) -> dict[str, Choice]:
        return choices(self.declared, self.database)

    def _readable(self, table: str) -> tuple[Found, SqlTable]:
        choice = self._choices[table]
        if isinstance(choice.failure, TarnError):
            raise choice.failure
        if choice.failure or not choice.found:
            where = self.declared.file.where("tables", table)
            what = f"the database cannot describe the table: {reason(choice.failure or KeyError())}"
            raise TarnError(what, where) from choice.failure
        return choice.found, choice.spec

    def _query(self, table: str, found: Found, spec: SqlTable, landed: Landed) -> Extract:
        """The rows from the highest cursor on, or all."""
        since, condition = None, None
        cursor = found.columns.get(_name_now(found, spec, str(spec.cursor)))
        if landed.span and cursor is not None:
            condition = self._within(cursor, landed.span)
        elif cursor is not None:
            since = watermark(landed, str(spec.cursor))
        if cursor is not None and since is not None:
            since = self._before(table, since, spec)
            condition = self._from_on(cursor, since)
        reading = self._reading(table, found, spec, condition, landed.schema)
        return Extract(
            reading.open,
            types=reading.types,
            spelt={name: str(column.name) for name, column in found.columns.items()},
            is_unique=found.keeps_unique([_name_now(found, spec, key) for key in spec.primary_key]),
            redelivered=landed.from_on(str(spec.cursor), since) if since is not None else "true",
        )

    def _reading(
        self,
        table: str,
        found: Found,
        spec: SqlTable,
        condition: sa.ColumnElement[bool] | None = None,
        landed: pa.Schema | None = None,
    ) -> Reading:
        kind = _READINGS.get(self.url.drivername, OtherReading)
        texts = {n for n, t in spec.columns.items() if t == "text" and n in found.columns}
        fixed = {*spec.primary_key, *spec.columns, *([spec.cursor] if spec.cursor else [])}
        where = self.declared.file.where("tables", table)
        wish = Wish(
            self.database.engine,
            found,
            condition,
            landed,
            frozenset(texts),
            frozenset(fixed),
            where,
        )
        return kind(wish)

    def _before(self, table: str, since: Any, spec: SqlTable) -> Any:
        try:
            return before(since, spec.overlap)
        except ValueError as error:
            where = self.declared.file.where("tables", table, "overlap")
            raise TarnError(str(error), where) from error

    def _within(self, column: sa.Column[Any], span: Span) -> sa.ColumnElement[bool] | None:
        """The rows of a span; None where the database may compare otherwise than we do. More rows
        than those do no harm."""
        kind = next((arrow for known, arrow in _SPANNED if isinstance(column.type, known)), None)
        if kind is None:
            return None
        low, high = span.bounds(kind)
        if self.url.get_backend_name() == "sqlite" and isinstance(low, date):
            days = low.strftime("%Y-%m-%d"), (high + timedelta(days=1)).strftime("%Y-%m-%d")
            return sa.type_coerce(column, sa.Text).between(*days)
        if isinstance(low, datetime) and getattr(column.type, "timezone", False):
            low, high = low.replace(tzinfo=UTC), high.replace(tzinfo=UTC)
        return column.between(sa.literal(low, column.type), sa.literal(high, column.type))

    def _from_on(self, column: sa.Column[Any], since: Any) -> sa.ColumnElement[bool]:
        """The rows whose cursor is `since` or higher, and those that have none."""
        if self.url.get_backend_name() == "sqlite":
            condition = sa.type_coerce(column, sa.Text) >= _sqlite_text(since)
            if isinstance(since, int | float):
                condition = column >= since
        else:
            if isinstance(since, datetime) and getattr(column.type, "timezone", False):
                since = since.replace(tzinfo=UTC)
            condition = column >= sa.literal(since, column.type)
        return sa.or_(condition, column.is_(None)) if column.nullable else condition


_SPANNED: tuple[tuple[type[sa.types.TypeEngine[Any]], pa.DataType], ...] = (
    (sa.Integer, pa.int64()),
    (sa.Date, pa.date32()),
    (sa.DateTime, pa.timestamp("us")),
)
"""Types of cursors by whose values a database can be asked for a span."""


def _name_now(found: Found, spec: SqlTable, name: str) -> str:
    """What a column of the lake is called by the database, which may have renamed it since."""
    return next((each for each in spec.contract.names_of(name) if each in found.columns), name)


def _sqlite_text(since: Any) -> str:
    """The lowest text in which SQLite may hold an instant: fractions and a midnight's time are
    left out, as it compares letter by letter and the same instant has several spellings."""
    if not isinstance(since, datetime):
        return str(since)
    if since.time() == time():
        return since.date().isoformat()
    return since.replace(microsecond=0).isoformat(sep=" ")


def _about_changes(connection: sa.Connection) -> list[str]:
    """Whether the database could tell of its changes itself."""
    if connection.dialect.name != "postgresql":
        return []
    level = connection.execute(sa.text("show wal_level")).scalar_one()
    role = "select rolreplication or rolsuper from pg_roles where rolname = current_user"
    may = connection.execute(sa.text(role)).scalar_one_or_none()
    if level == "logical" and may:
        return ["mode: cdc is possible: wal_level is logical and this user may replicate"]
    lacks = [] if level == "logical" else [f"wal_level is {level}, not logical"]
    lacks += [] if may else ["this user may not replicate"]
    return [f"mode: cdc is not possible: {', '.join(lacks)}"]


def _offered(name: str, choice: Choice, reading: Reading) -> Offered:
    found, spec = choice.found, choice.spec
    assert found is not None
    words: dict[str, Any] = {}
    if found.table.name != name:
        words["table"] = found.table.name
    if found.table.schema:
        words["schema"] = found.table.schema
    if spec.primary_key:
        words["primary_key"] = list(spec.primary_key)
    for key in ("cursor", "overlap", "write"):
        if (value := getattr(spec, key)) is not None:
            words[key] = value
    columns = {column: type_name(kind) for column, kind in reading.landed_types().items()}
    comments = {column: each.comment or "" for column, each in found.columns.items()}
    return Offered(name, words, columns, found.comment, comments)
