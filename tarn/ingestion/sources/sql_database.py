"""Databases. PostgreSQL and SQLite are read through ADBC, which hands over Arrow as the server
sends it; any other through SQLAlchemy. dlt's `sql_table` drives both."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import adbc_driver_manager
import adbc_driver_postgresql  # type: ignore[import-untyped]
import adbc_driver_sqlite
import pyarrow as pa
import sqlalchemy as sa
from dlt.extract import DltResource
from dlt.sources.sql_database import BaseTableLoader, TableLoader, sql_table
from sqlalchemy.dialects import postgresql

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.sql_database import SqlTable
from tarn.ingestion.landed import Landed
from tarn.ingestion.sources import BATCH_ROWS, Extract, ReadAgainError, Source, column_names
from tarn.settings import Settings
from tarn.storage.duck import identifier
from tarn.strict_yaml import nearest

_EXACT_DIGITS = pa.decimal128(38, 9)
"""For a PostgreSQL numeric without precision; a value with more digits goes to quarantine."""


class SqlDatabase(Source):
    """A database, read table by table from each one's highest cursor on."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared = declared
        self.where = declared.file.where("connection")
        self.url = _url(str(declared.system.connection), home.project_dir, self.where)
        self.secrets = frozenset([self.url.password] if self.url.password else [])
        driver = {"postgresql": "postgresql+psycopg"}.get(self.url.drivername, self.url.drivername)
        self.engine = self._engine(self.url.set(drivername=driver))

    def extract(self, table: str, landed: Landed) -> Extract | None:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, SqlTable)
        found = self._reflect(spec.table or table, spec, table)
        names = column_names([column.name for column in found.columns], landed.name)
        columns = dict(zip(names, found.columns, strict=True))
        since = landed.maximum(spec.cursor) if spec.cursor else None
        condition = None
        if since is not None and spec.cursor in columns:
            condition = self._from_on(columns[spec.cursor], since)
        reading = _Reading(self.engine, self.url, found, columns, condition)
        return Extract(
            reading.open,
            types=reading.types,
            is_unique=_is_unique(found, [columns.get(key) for key in spec.primary_key]),
            redelivered=landed.from_on(str(spec.cursor), since) if since is not None else "true",
        )

    def _engine(self, url: sa.URL) -> sa.Engine:
        try:
            return sa.create_engine(url, poolclass=sa.NullPool)
        except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
            fix = "install the driver that SQLAlchemy asks for, or mend the address"
            raise TarnError(f"cannot use this address: {error}", self.where, fix) from error

    def _reflect(self, name: str, spec: SqlTable, key: str) -> sa.Table:
        try:
            return sa.Table(
                name,
                sa.MetaData(),
                schema=spec.db_schema,
                autoload_with=self.engine,
                resolve_fks=False,
            )
        except sa.exc.NoSuchTableError as error:
            inspector = sa.inspect(self.engine)
            known = [
                *inspector.get_table_names(spec.db_schema),
                *inspector.get_view_names(spec.db_schema),
            ]
            where = self.declared.file.where("tables", key)
            raise TarnError(
                f"the database has no table {name!r}{nearest(name, known)}", where
            ) from error
        except sa.exc.DBAPIError as error:
            reason = str(error.orig).strip().partition("\n")[0]
            address = self.url.render_as_string(hide_password=True)
            fix = "check that the database runs and that address, name and password are right"
            raise TarnError(f"cannot open {address}: {reason}", self.where, fix) from error

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


class _Reading:
    """How one table is selected and read."""

    def __init__(
        self,
        engine: sa.Engine,
        url: sa.URL,
        table: sa.Table,
        columns: Mapping[str, sa.Column[Any]],
        condition: sa.ColumnElement[bool] | None,
    ) -> None:
        self.engine, self.table, self.columns, self.condition = engine, table, columns, condition
        self.loader = {"sqlite": _SqliteLoader, "postgresql": _PostgresLoader}.get(
            url.drivername, TableLoader
        )
        self.samples = {name: _sqlite_sample(column.type) for name, column in columns.items()}
        self.types = self._types()

    def open(self) -> DltResource:
        return sql_table(
            credentials=self.engine,
            table=self.table.name,
            schema=self.table.schema,
            metadata=self.table.metadata,
            chunk_size=BATCH_ROWS,
            backend="pyarrow",
            query_adapter_callback=lambda *_: self._query(),
            backend_kwargs={"samples": self.samples} if self.loader is _SqliteLoader else {},
            table_loader_class=self.loader,
        )

    def _types(self) -> dict[str, pa.DataType]:
        if self.loader is _SqliteLoader:
            return {name: _sqlite_type(column.type) for name, column in self.columns.items()}
        if self.loader is _PostgresLoader:
            kinds = {name: _postgres_type(column.type) for name, column in self.columns.items()}
            return {name: kind for name, kind in kinds.items() if kind is not None}
        return {}

    def _query(self) -> sa.Select[Any]:
        chosen = [self._expression(column).label(name) for name, column in self.columns.items()]
        query = sa.select(*chosen)
        return query if self.condition is None else query.where(self.condition)

    def _expression(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        if self.loader is _PostgresLoader and not isinstance(_base(column.type), _POSTGRES_AS_IS):
            return sa.cast(column, sa.Text)
        return column


class _AdbcLoader(BaseTableLoader):
    """Reads dlt's query through an ADBC driver."""

    def load_rows(self, backend_kwargs: dict[str, Any] | None = None) -> Iterator[pa.RecordBatch]:
        yield from _with_schema(self._read(self.compile_query(self.make_query())))

    def _read(self, sql: str) -> Iterator[pa.RecordBatch | pa.Schema]:
        raise NotImplementedError


class _PostgresLoader(_AdbcLoader):
    def _read(self, sql: str) -> Iterator[pa.RecordBatch | pa.Schema]:
        address = self.get_connection_url()
        with adbc_driver_postgresql.connect(address) as database:
            yield from _execute(database, sql, {})


class _SqliteLoader(_AdbcLoader):
    """SQLite stores any type in any column and the driver takes each column's type from the
    first row, so a first row of the declared types is put before the others. A row that differs
    ends the reading; it starts over with all as text, and the contract casts what it can."""

    def load_rows(self, backend_kwargs: dict[str, Any] | None = None) -> Iterator[pa.RecordBatch]:
        samples: dict[str, str] = (backend_kwargs or {})["samples"]
        first = ", ".join(f"{value} as {identifier(name)}" for name, value in samples.items())
        sql = f"select {first} union all {self.compile_query(self.make_query())}"
        is_first = True
        try:
            for item in self._read(sql):
                if isinstance(item, pa.RecordBatch):
                    yield item.slice(1) if is_first else item
                    is_first = False
        except OSError as error:
            if "Type mismatch" not in str(error):
                raise
            samples.update(dict.fromkeys(samples, "'x'"))
            raise ReadAgainError from error

    def _read(self, sql: str) -> Iterator[pa.RecordBatch | pa.Schema]:
        path = Path(str(self.engine.url.database)).resolve()
        options = {"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)}
        with adbc_driver_sqlite.connect(f"{path.as_uri()}?mode=ro") as database:
            yield from _execute(database, sql, options)


def _execute(
    database: Any, sql: str, options: Mapping[str, str]
) -> Iterator[pa.RecordBatch | pa.Schema]:
    """The result's schema, then its batches."""
    with (
        adbc_driver_manager.AdbcConnection(database) as connection,
        adbc_driver_manager.AdbcStatement(connection) as statement,
    ):
        statement.set_options(**options)
        statement.set_sql_query(sql)
        handle, _ = statement.execute_query()
        with pa.RecordBatchReader._import_from_c(handle.address) as reader:
            yield reader.schema
            yield from reader


def _with_schema(items: Iterator[pa.RecordBatch | pa.Schema]) -> Iterator[pa.RecordBatch]:
    """The schema as an empty batch, so that an empty table's columns are known."""
    yield pa.RecordBatch.from_pylist([], schema=next(items))
    yield from items


def _url(address: str, project: Path, where: str) -> sa.URL:
    try:
        url = sa.make_url(address)
    except sa.exc.ArgumentError as error:
        fix = "write postgresql://user:password@host/database or sqlite:///path"
        raise TarnError("connection is no database address", where, fix) from error
    if url.get_backend_name() != "sqlite" or not url.database:
        return url
    path = project / url.database
    if not path.is_file():
        raise TarnError(
            f"no database file {url.database}", where, "check the path; is it made yet?"
        )
    return url.set(database=str(path))


def _is_unique(table: sa.Table, key: Sequence[sa.Column[Any] | None]) -> bool:
    """Whether the database itself keeps the declared key unique."""
    names = {column.name for column in key if column is not None}
    primary = {column.name for column in table.primary_key.columns}
    return bool(primary) and primary <= names


def _sqlite_text(since: Any) -> str:
    """The lowest text in which SQLite may hold an instant: fractions and a midnight's time are
    left out, as it compares letter by letter and the same instant has several spellings."""
    if not isinstance(since, datetime):
        return str(since)
    if since.time() == time():
        return since.date().isoformat()
    return since.replace(microsecond=0).isoformat(sep=" ")


_SQLITE: tuple[tuple[type[sa.types.TypeEngine[Any]], str, pa.DataType], ...] = (
    (sa.Boolean, "0", pa.bool_()),
    (sa.Integer, "0", pa.int64()),
    (sa.Float, "0.5", pa.float64()),
    (sa.Numeric, "0.5", pa.float64()),
    (sa.Date, "'x'", pa.date32()),
    (sa.DateTime, "'x'", pa.timestamp("us")),
    (sa.LargeBinary, "x'00'", pa.binary()),
    (sa.types.TypeEngine, "'x'", pa.string()),
)
"""Declared type, a value of it, and the Arrow type to land it as; the first that fits counts."""


def _sqlite_sample(kind: sa.types.TypeEngine[Any]) -> str:
    return next(sample for known, sample, _ in _SQLITE if isinstance(kind, known))


def _sqlite_type(kind: sa.types.TypeEngine[Any]) -> pa.DataType:
    if isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float) and kind.precision:
        return pa.decimal128(min(kind.precision, 38), kind.scale or 0)
    return next(arrow for known, _, arrow in _SQLITE if isinstance(kind, known))


_POSTGRES_AS_IS = (
    sa.Integer,
    sa.Numeric,
    sa.Boolean,
    sa.String,
    sa.Date,
    sa.DateTime,
    sa.Time,
    sa.LargeBinary,
    postgresql.JSON,
    postgresql.ARRAY,
)
"""What the driver gives as Arrow without loss; all else is read as PostgreSQL's own text."""


def _base(kind: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    return _base(kind.data_type) if isinstance(kind, postgresql.DOMAIN) else kind


def _postgres_type(kind: sa.types.TypeEngine[Any]) -> pa.DataType | None:
    """The type of numbers, which the driver gives as text."""
    kind = _base(kind)
    if not isinstance(kind, sa.Numeric) or isinstance(kind, sa.Float):
        return None
    if kind.precision is None:
        return _EXACT_DIGITS
    return pa.decimal128(min(kind.precision, 38), kind.scale or 0)
