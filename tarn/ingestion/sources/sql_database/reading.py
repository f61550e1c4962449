"""Reading one table: what all databases have in common."""

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import dlt
import pyarrow as pa
import sqlalchemy as sa
from dlt.extract import DltResource

from tarn.errors import TarnError
from tarn.ingestion.sources import BATCH_ROWS, ReadAgainError
from tarn.ingestion.sources.sql_database.addresses import reason
from tarn.ingestion.sources.sql_database.found import Found

_WIDE = 32
"""From so many columns on, batches have fewer rows."""


@dataclass(frozen=True)
class Wish:
    """What is to be read of one table."""

    engine: sa.Engine
    found: Found
    condition: sa.ColumnElement[bool] | None
    landed: pa.Schema | None
    """Columns of the table in the lake."""
    texts: frozenset[str]
    """Columns to be read as text, as they are declared to be."""
    fixed: frozenset[str]
    """Columns that keep their type whatever comes: keys and cursor."""
    where: str


class Reading:
    """How one table is read. `open` may be called again, to start over."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.columns = wish.found.columns
        self.types: dict[str, pa.DataType] = {}
        """Types to land columns as, where the batches carry others. May change before a second
        reading."""

    def open(self) -> DltResource:
        return dlt.resource(self._told(), name=self.wish.found.table.name)

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        """The rows; an empty batch comes first, so that an empty table's columns are known."""
        raise NotImplementedError

    def landed_types(self) -> dict[str, pa.DataType]:
        """The type of each column in the lake, as far as the database tells."""
        return self.types

    @property
    def rows_at_once(self) -> int:
        return max(1000, BATCH_ROWS * _WIDE // max(_WIDE, len(self.columns)))

    def is_new(self, name: str) -> bool:
        """Whether the lake has yet to say which type a column has."""
        known = self.wish.landed is not None and name in self.wish.landed.names
        return not known and name not in self.wish.fixed

    def sql(self, expressions: Mapping[str, sa.ColumnElement[Any]], dialect: sa.Dialect) -> str:
        """The query with its values in it."""
        query = self.query(expressions)
        return str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))

    def query(self, expressions: Mapping[str, sa.ColumnElement[Any]]) -> sa.Select[Any]:
        chosen = [expression.label(name) for name, expression in expressions.items()]
        query = sa.select(*chosen).select_from(self.wish.found.table)
        return query if self.wish.condition is None else query.where(self.wish.condition)

    def _told(self) -> Iterator[pa.RecordBatch]:
        """The rows, read one batch ahead while the one before is written."""
        with (
            self._telling(),
            closing(self.batches()) as batches,
            ThreadPoolExecutor(1) as pool,
        ):
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (TarnError, ReadAgainError, GeneratorExit):
            raise
        except Exception as error:
            what = f"reading {self.wish.found.table.fullname} ended: {reason(error)}"
            fix = "nothing was written; run it again when the database can be read"
            raise TarnError(what, self.wish.where, fix) from error
