"""MySQL and MariaDB through PyMySQL.

Values are taken as the server writes them, which loses nothing, and the contract casts them: a
zero date goes to quarantine instead of becoming null. Instants are UTC.
"""

from collections.abc import Generator
from typing import Any

import pyarrow as pa
import pymysql  # type: ignore[import-untyped]
import sqlalchemy as sa
from pymysql.cursors import SSCursor  # type: ignore[import-untyped]
from sqlalchemy.dialects import mysql

from tarn.ingestion.sources.sql_database.reading import Reading, Wish

_DIGITS = 38
_GEOMETRY = {
    "geometry",
    "point",
    "linestring",
    "polygon",
    "multipoint",
    "multilinestring",
    "multipolygon",
    "geometrycollection",
    "geomcollection",
}
_WHOLE = (
    (mysql.BIGINT, pa.int64(), pa.decimal128(20, 0)),
    (mysql.YEAR, pa.int32(), pa.int32()),
    (sa.Integer, pa.int32(), pa.int64()),
)
"""Whole numbers, and what they land as with and without sign."""


class MysqlReading(Reading):
    def __init__(self, wish: Wish) -> None:
        super().__init__(wish)
        self.types.update({name: _landed(column.type) for name, column in self.columns.items()})

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        schema = pa.schema([(name, _carried(kind)) for name, kind in self.types.items()])
        yield pa.RecordBatch.from_pylist([], schema=schema)
        _, arguments = self.wish.engine.dialect.create_connect_args(self.wish.engine.url)
        own = {"conv": pymysql.converters.encoders, "charset": "utf8mb4"}
        connection = pymysql.connect(**{**arguments, **own, "cursorclass": SSCursor})
        try:
            cursor = connection.cursor()
            cursor.execute("set time_zone = '+00:00'")
            names = self._geometries(cursor)
            cursor.execute(self.sql(self._expressions(names), self.wish.engine.dialect), ())
            while rows := cursor.fetchmany(self.rows_at_once):
                arrays = map(pa.array, zip(*rows, strict=True), schema.types)
                yield pa.RecordBatch.from_arrays(list(arrays), schema=schema)
        finally:
            _let_go(connection)

    def _geometries(self, cursor: Any) -> set[str]:
        """Columns of types that SQLAlchemy does not know and are shapes."""
        if not any(isinstance(c.type, sa.types.NullType) for c in self.columns.values()):
            return set()
        table = self.wish.found.table
        schema, name = (
            pymysql.converters.escape_string(n or "") for n in (table.schema, table.name)
        )
        cursor.execute(
            "select column_name, data_type from information_schema.columns "
            f"where table_schema = '{schema}' and table_name = '{name}'"
        )
        return {column for column, kind in cursor.fetchall() if kind in _GEOMETRY}

    def _expressions(self, geometries: set[str]) -> dict[str, sa.ColumnElement[Any]]:
        return {
            name: _text_of_shape(column) if column.name in geometries else _expression(column)
            for name, column in self.columns.items()
        }


def _let_go(connection: Any) -> None:
    """Close it where it stands: PyMySQL would read on to the end, even when it is gone."""
    if connection._result:
        connection._result.unbuffered_active = False
    connection.close()


def _expression(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    if isinstance(column.type, mysql.BIT):
        return column.op("+")(sa.literal_column("0"))
    if isinstance(column.type, mysql.FLOAT):
        # Alone, it is written with six digits.
        return column.op("+")(sa.literal_column("0e0"))
    if isinstance(column.type, sa.types.NullType):
        return sa.cast(column, mysql.CHAR)
    return column


def _text_of_shape(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """Well-known text, with the number of the reference system if there is one."""
    text, system = sa.func.st_astext(column), sa.func.st_srid(column)
    with_system = sa.func.concat("SRID=", system, ";", text)
    return sa.case((system == sa.literal_column("0"), text), else_=with_system)


def _carried(kind: pa.DataType) -> pa.DataType:
    return kind if pa.types.is_binary(kind) else pa.string()


def _landed(kind: sa.types.TypeEngine[Any]) -> pa.DataType:
    if isinstance(kind, mysql.BIT):
        width = kind.length or 1
        return pa.bool_() if width == 1 else pa.int64() if width < 64 else pa.decimal128(20, 0)
    for known, signed, unsigned in _WHOLE:
        if isinstance(kind, known):
            return unsigned if getattr(kind, "unsigned", False) else signed
    if isinstance(kind, sa.Float):
        return pa.float64()
    if isinstance(kind, sa.Numeric):
        digits = kind.precision or 10
        return pa.decimal128(digits, kind.scale or 0) if digits <= _DIGITS else pa.string()
    if isinstance(kind, sa.DateTime):
        return pa.timestamp("us")
    if isinstance(kind, sa.Date):
        return pa.date32()
    return pa.binary() if isinstance(kind, sa.types._Binary) else pa.string()
