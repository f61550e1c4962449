"""PostgreSQL through ADBC, which hands over what COPY sends as Arrow.

What the driver would bend is read otherwise. Numbers with few digits come as whole numbers of
their last digit, ten times as fast as the driver's own; others as text. The driver turns an
infinite instant into some day, and lists of lists into one list: then reading starts over with
PostgreSQL's own text. In a new table a column that holds such a value is text.
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import adbc_driver_manager
import adbc_driver_postgresql  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tarn.ingestion.sources import ReadAgainError
from tarn.ingestion.sources.sql_database.reading import Reading, Wish
from tarn.ingestion.types import exact_cast

_DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
"""Doubles no percent signs."""
_SESSION = (
    "set timezone = 'UTC'",
    "set datestyle = 'ISO'",
    "set intervalstyle = 'postgres'",
    "set bytea_output = 'hex'",
)
_AS_IS = (
    sa.Integer,
    sa.Float,
    sa.Boolean,
    sa.String,
    sa.Date,
    sa.DateTime,
    sa.LargeBinary,
    postgresql.JSON,
)
"""What the driver gives as Arrow without loss; all else is read as PostgreSQL's own text."""
_EXACT_DIGITS = pa.decimal128(38, 9)
"""For a number without precision."""
_FEW_DIGITS = 18
"""So many fit a whole number of 64 bits."""
_EARLIEST = {pa.int64(): -(10**18), pa.int32(): -2_500_000}
"""Microseconds and days since 1970 before PostgreSQL's first: numbers that have overflowed."""
_FAST, _AS_TEXT, _AS_JSON = range(3)
"""How carefully values are read."""


class PostgresReading(Reading):
    session: tuple[str, ...] = ()
    """Statements to run before the query."""

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish)
        self.mode = _FAST
        self.kinds = {name: _base(column.type) for name, column in self.columns.items()}
        wide = {name: _number(kind) for name, kind in self.kinds.items()}
        self.numbers = {name: kind for name, kind in wide.items() if kind is not None}
        self.types.update(self.numbers)
        self.lists = {n for n, k in self.kinds.items() if isinstance(k, postgresql.ARRAY)}
        self.nested: set[str] = set()
        """Lists that hold lists."""
        self.kept = self._kept_as_text()
        self.types.update(dict.fromkeys(self.kept, pa.string()))

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        try:
            if self.mode == _AS_JSON and self.lists:
                self.nested = self._ask_for_nested()
            for batch in self._read(self.sql(self._expressions(), _DIALECT)):
                yield self._checked(batch)
        except ReadAgainError:
            raise
        except Exception as error:
            if self.mode == _AS_JSON or not _is_of_values(error):
                raise
            self.mode += 1
            raise ReadAgainError from error

    def _ask_for_nested(self) -> set[str]:
        asked = {name: sa.func.max(sa.func.array_ndims(self.columns[name])) for name in self.lists}
        (row,) = [
            row for batch in self._read(self.sql(asked, _DIALECT)) for row in batch.to_pylist()
        ]
        return {name for name, dimensions in row.items() if (dimensions or 1) > 1}

    def landed_types(self) -> dict[str, pa.DataType]:
        return {name: self.types.get(name) or _landed(kind) for name, kind in self.kinds.items()}

    def _read(self, sql: str) -> Iterator[pa.RecordBatch]:
        with adbc_driver_manager.AdbcConnection(_database(self.wish.engine)) as connection:
            for setting in (*_SESSION, *self.session):
                with adbc_driver_manager.AdbcStatement(connection) as statement:
                    statement.set_sql_query(setting)
                    statement.execute_update()
            yield from executed(connection, sql, {})

    def _kept_as_text(self) -> set[str]:
        """Columns that are text in the lake since a value had no other type."""
        known = self.wish.landed or ()
        kept = {field.name for field in known if pa.types.is_string(field.type)}
        instants = {name for name, kind in self.kinds.items() if isinstance(kind, _INSTANTS)}
        return kept & {*self.numbers, *self.lists, *instants}

    def _expressions(self) -> dict[str, sa.ColumnElement[Any]]:
        return {name: self._expression(name, column) for name, column in self.columns.items()}

    def _expression(self, name: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        kind = self.kinds[name]
        is_text = name in self.kept or self.mode >= _AS_TEXT
        if name in self.wish.texts or (is_text and isinstance(kind, _INSTANTS)):
            return sa.cast(column, sa.Text)
        if name in self.numbers:
            return self._number_of(name, column)
        if isinstance(kind, postgresql.ARRAY):
            return self._list(name, column, kind)
        if isinstance(kind, _AS_IS) and not isinstance(kind, postgresql.CITEXT):
            return column if kind is column.type else sa.cast(column, kind)
        return sa.cast(column, sa.Text)

    def _number_of(self, name: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        if self._is_whole(name):
            scale = self.numbers[name].scale
            return sa.cast(column.op("*")(sa.literal_column(str(10**scale))), sa.BigInteger)
        if isinstance(self.kinds[name], postgresql.MONEY):
            return sa.cast(sa.cast(column, sa.Numeric), sa.Text)
        return sa.cast(column, sa.Text)

    def _is_whole(self, name: str) -> bool:
        """Whether a number is read as how often it holds its last digit."""
        is_numeric = isinstance(self.kinds[name], sa.Numeric)
        few = self.numbers[name].precision <= _FEW_DIGITS
        return self.mode == _FAST and is_numeric and few and name not in self.kept

    def _list(
        self, name: str, column: sa.Column[Any], kind: postgresql.ARRAY[Any]
    ) -> sa.ColumnElement[Any]:
        as_json = sa.cast(sa.func.to_json(column), sa.Text)
        if name in self.kept or (name in self.nested and self.is_new(name)):
            self.types[name] = pa.string()
            return as_json
        item = _base(kind.item_type)
        if not isinstance(item, _AS_IS) or isinstance(item, (postgresql.JSON, *_INSTANTS)):
            kind = postgresql.ARRAY(sa.Text)
        # JSON is no way to write a list, so this ends the reading.
        is_nested = sa.func.array_ndims(column) > 1
        return sa.case((is_nested, sa.cast(as_json, kind)), else_=sa.cast(column, kind))

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        arrays = [self._exact(name, batch.column(name)) for name in batch.schema.names]
        return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)

    def _exact(self, name: str, column: pa.Array) -> pa.Array:
        if name in self.wish.texts:
            return column
        if name in self.numbers and self._is_whole(name):
            return _scaled(column, self.numbers[name])
        kind = self.kinds[name]
        if isinstance(kind, _INSTANTS) and not pa.types.is_string(column.type):
            self._check_overflow(column)
        elif pa.types.is_string(column.type) and (name in self.numbers or _is_instant(kind)):
            self._check_fits(name, column)
        return column

    def _check_overflow(self, column: pa.Array) -> None:
        number = pa.int64() if pa.types.is_timestamp(column.type) else pa.int32()
        least = pc.min(column.view(number)).as_py()
        if least is not None and least < _EARLIEST[number]:
            self.mode = _AS_TEXT
            raise ReadAgainError

    def _check_fits(self, name: str, column: pa.Array) -> None:
        """A new column with a value that Delta has no type for becomes text."""
        kind = self.types.setdefault(name, _instant(self.kinds[name]))
        if not self.is_new(name) or pa.types.is_string(kind):
            return
        if exact_cast(column, kind)[1] is not None:
            self.types[name] = pa.string()
            raise ReadAgainError


_INSTANTS = (sa.Date, sa.DateTime)
_DATABASES: WeakKeyDictionary[sa.Engine, Any] = WeakKeyDictionary()


def _database(engine: sa.Engine) -> Any:
    """The driver's own handle, one for all tables: it reads all types when it is made."""
    if engine not in _DATABASES:
        url = engine.url.set(drivername="postgresql")
        address = url.render_as_string(hide_password=False)
        _DATABASES[engine] = adbc_driver_postgresql.connect(address)
    return _DATABASES[engine]


def executed(connection: Any, sql: str, options: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """An empty batch, then the result of a query through ADBC."""
    with adbc_driver_manager.AdbcStatement(connection) as statement:
        statement.set_options(**options)
        statement.set_sql_query(sql)
        handle, _ = statement.execute_query()
        with pa.RecordBatchReader._import_from_c(handle.address) as reader:
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield from reader


def _is_of_values(error: Exception) -> bool:
    """Whether PostgreSQL refused a value, as NaN for a whole number. In the middle of a stream the
    driver does not hand over the error's number."""
    if state := getattr(error, "sqlstate", None):
        return str(state).startswith(("22", "0A"))
    return "PGRES_FATAL_ERROR" in str(error) and "terminating" not in str(error)


def _base(kind: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    return _base(kind.data_type) if isinstance(kind, postgresql.DOMAIN) else kind


def _number(kind: sa.types.TypeEngine[Any]) -> pa.DataType | None:
    """The type of numbers that are no binary fractions."""
    if isinstance(kind, postgresql.MONEY):
        return pa.decimal128(19, 2)
    if not isinstance(kind, sa.Numeric) or isinstance(kind, sa.Float):
        return None
    if kind.precision is None:
        return _EXACT_DIGITS
    scale = kind.scale or 0
    digits = max(kind.precision - min(scale, 0), scale)
    return pa.decimal128(min(digits, 38), min(max(scale, 0), 38))


def _is_instant(kind: sa.types.TypeEngine[Any]) -> bool:
    return isinstance(kind, _INSTANTS)


def _instant(kind: sa.types.TypeEngine[Any]) -> pa.DataType:
    return pa.date32() if isinstance(kind, sa.Date) else pa.timestamp("us")


def _scaled(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Whole numbers of a decimal's last digit as that decimal: the same 128 bits."""
    wide = pc.cast(column, pa.decimal128(19, 0))
    return pa.Array.from_buffers(kind, len(wide), wide.buffers(), wide.null_count, wide.offset)


_LANDED: tuple[tuple[type[sa.types.TypeEngine[Any]], pa.DataType], ...] = (
    (sa.SmallInteger, pa.int16()),
    (sa.BigInteger, pa.int64()),
    (sa.Integer, pa.int32()),
    (sa.REAL, pa.float32()),
    (sa.Float, pa.float64()),
    (sa.Boolean, pa.bool_()),
    (sa.Date, pa.date32()),
    (sa.DateTime, pa.timestamp("us")),
    (sa.LargeBinary, pa.binary()),
    (sa.types.TypeEngine, pa.string()),
)
"""What the driver gives; the first that fits counts."""


def _landed(kind: sa.types.TypeEngine[Any]) -> pa.DataType:
    if isinstance(kind, postgresql.ARRAY):
        return pa.list_(_landed(_base(kind.item_type)))
    return next(landed for known, landed in _LANDED if isinstance(kind, known))
