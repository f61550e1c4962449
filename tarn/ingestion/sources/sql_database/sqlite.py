"""SQLite through ADBC.

SQLite stores any type in any column, and the driver takes each column's type from the rows it
sees first and bends what comes later. So SQLite is first asked, in the same snapshot, which
columns hold what their type says; the others are read as text that loses nothing, and the contract
casts what it can. A column without type, as of a view, has that of its values.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import adbc_driver_manager
import adbc_driver_sqlite
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from tarn.ingestion.sources.sql_database.postgres import executed
from tarn.ingestion.sources.sql_database.reading import Reading, Wish

_DIALECT = sqlite.dialect(paramstyle="named")
_WHOLE_FRACTIONS = 2**53
"""Whole numbers up to it are binary fractions too."""
_DECLARED: tuple[tuple[type[sa.types.TypeEngine[Any]], str, pa.DataType], ...] = (
    (sa.Boolean, "integer", pa.bool_()),
    (sa.Integer, "integer", pa.int64()),
    (sa.Float, "real", pa.float64()),
    (sa.Numeric, "real", pa.float64()),
    (sa.Date, "text", pa.date32()),
    (sa.DateTime, "text", pa.timestamp("us")),
    (sa.LargeBinary, "blob", pa.binary()),
    (sa.types.NullType, "", pa.null()),
    (sa.types.TypeEngine, "text", pa.string()),
)
"""Declared type, how its values are stored, and the type to land them as; the first that fits."""
_SAMPLES = {"integer": "0", "real": "0.5", "text": "'x'", "blob": "x'00'"}
_STORED = {
    "integer": pa.int64(),
    "real": pa.float64(),
    "text": pa.string(),
    "blob": pa.binary(),
}


class SqliteReading(Reading):
    def __init__(self, wish: Wish) -> None:
        super().__init__(wish)
        self.stored: dict[str, str] = {}
        for name, column in self.columns.items():
            self.stored[name], self.types[name] = _declared(column.type)

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        path = Path(str(self.wish.engine.url.database)).resolve()
        options = {"adbc.sqlite.query.batch_rows": str(self.rows_at_once)}
        with (
            adbc_driver_sqlite.connect(f"{path.as_uri()}?mode=ro") as database,
            adbc_driver_manager.AdbcConnection(database) as connection,
        ):
            connection.set_autocommit(False)
            exact = self._not_as_declared(connection)
            # The driver takes the types from this row.
            first = [
                f"{_SAMPLES['text' if name in exact else kind]} as {_quoted(name)}"
                for name, kind in self.stored.items()
            ]
            expressions = {
                name: _as_text(column) if name in exact else column
                for name, column in self.columns.items()
            }
            sql = f"select {', '.join(first)} union all {self.sql(expressions, _DIALECT)}"
            is_first = True
            for batch in executed(connection, sql, options):
                yield batch.slice(1) if is_first and batch.num_rows else batch
                is_first = is_first and not batch.num_rows

    def _not_as_declared(self, connection: Any) -> set[str]:
        """Columns to be read as text. Settles the type of those that have none."""
        exact = set(self.wish.texts)
        for name, kinds in self._held(connection).items():
            if not self.stored[name]:
                self.stored[name] = _of_all(kinds)
                self.types[name] = _STORED[self.stored[name]]
            if not kinds <= _HOLDS[self.stored[name]]:
                exact.add(name)
        return exact

    def _held(self, connection: Any) -> dict[str, set[str]]:
        """How the values of each column are stored; `large` if whole numbers are no fractions."""
        asked = {
            f"{i}:{kind}": sa.func.max(condition)
            for i, column in enumerate(self.columns.values())
            for kind, condition in _conditions(column).items()
        }
        answers: dict[str, int | None] = {}
        names = list(asked)
        for start in range(0, len(names), _MOST_COLUMNS):
            part = {name: asked[name] for name in names[start : start + _MOST_COLUMNS]}
            for batch in executed(connection, self.sql(part, _DIALECT), {}):
                answers |= next(iter(batch.to_pylist()), {})
        return {
            name: {kind for kind in (*_SAMPLES, "large") if answers.get(f"{i}:{kind}")}
            for i, name in enumerate(self.columns)
        }


_HOLDS = {
    "integer": {"integer", "large"},
    "real": {"real", "integer"},
    "text": {"text"},
    "blob": {"blob"},
}
"""What a column may hold to be read as it is declared."""


def _of_all(kinds: set[str]) -> str:
    """How a column that is declared without type is best stored."""
    return next((kind for kind, holds in _HOLDS.items() if kinds <= holds), "text")


_MOST_COLUMNS = 1500
"""SQLite gives back 2,000 at once."""


def _conditions(column: sa.Column[Any]) -> dict[str, sa.ColumnElement[Any]]:
    stored = sa.func.typeof(column)
    known, _ = _declared(column.type)
    large = sa.and_(stored == "integer", sa.func.abs(column) > _WHOLE_FRACTIONS)
    kinds = [kind for kind in _SAMPLES if kind != known]
    return {**{kind: stored == kind for kind in kinds}, "large": large}


def _declared(kind: sa.types.TypeEngine[Any]) -> tuple[str, pa.DataType]:
    """How values are stored, and the type they land as."""
    stored, landed = next((s, a) for known, s, a in _DECLARED if isinstance(kind, known))
    if isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float) and kind.precision:
        return stored, pa.decimal128(min(kind.precision, 38), min(kind.scale or 0, 38))
    return stored, landed


def _as_text(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """Text from which each value can be told: SQLite's own cast cuts fractions to 15 digits."""
    stored = sa.func.typeof(column)
    blob = sa.literal("x'").op("||")(sa.func.hex(column)).op("||")(sa.literal("'"))
    return sa.case(
        (stored == "real", sa.func.printf("%!.17g", column)),
        (stored == "blob", blob),
        else_=sa.cast(column, sa.Text),
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
