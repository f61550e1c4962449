"""Any other database, through SQLAlchemy and the driver that its address names."""

from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from tarn.ingestion.sources import ReadAgainError
from tarn.ingestion.sources.sql_database.reading import Reading, Wish

_TYPES: tuple[tuple[type[sa.types.TypeEngine[Any]], pa.DataType], ...] = (
    (sa.Boolean, pa.bool_()),
    (sa.Integer, pa.int64()),
    (sa.Float, pa.float64()),
    (sa.Date, pa.date32()),
    (sa.DateTime, pa.timestamp("us")),
    (sa.LargeBinary, pa.binary()),
    (sa.types.TypeEngine, pa.string()),
)
"""What columns land as; the first that fits counts."""


class OtherReading(Reading):
    def __init__(self, wish: Wish) -> None:
        super().__init__(wish)
        self.types.update({name: _landed(column.type) for name, column in self.columns.items()})
        self.as_text = set(wish.texts)
        """Columns that hold values of several types."""

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        schema = pa.schema(
            [(n, pa.string() if n in self.as_text else kind) for n, kind in self.types.items()]
        )
        yield pa.RecordBatch.from_pylist([], schema=schema)
        query = self.query(dict(self.columns)).execution_options(yield_per=self.rows_at_once)
        with self.wish.engine.connect() as connection:
            for rows in connection.execute(query).partitions():
                columns = zip(*rows, strict=True)
                arrays = [
                    self._array(field, values)
                    for field, values in zip(schema, columns, strict=True)
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _array(self, field: pa.Field, values: tuple[Any, ...]) -> pa.Array:
        if pa.types.is_string(field.type):
            return pa.array([None if value is None else str(value) for value in values], field.type)
        try:
            return pa.array(map(_in_utc, values), field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            self.as_text.add(field.name)
            raise ReadAgainError from error


def _in_utc(value: Any) -> Any:
    """An instant with a zone as Arrow is to keep it."""
    if isinstance(value, datetime) and value.tzinfo:
        return value.astimezone(UTC).replace(tzinfo=None)
    return value


def _landed(kind: sa.types.TypeEngine[Any]) -> pa.DataType:
    if isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float) and kind.precision:
        fits = kind.precision <= 38 and 0 <= (kind.scale or 0) <= kind.precision
        return pa.decimal128(kind.precision, kind.scale or 0) if fits else pa.string()
    return next(landed for known, landed in _TYPES if isinstance(kind, known))
