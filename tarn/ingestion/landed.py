"""What the lake already holds of a table: the only memory a load has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from tarn.ingestion.options import Span
from tarn.storage.duck import prepare, quoted, select_from
from tarn.storage.lake import Lake

LOAD_ID = "_load_id"
LOADED_AT = "_loaded_at"
SOURCE_FILE = "_source_file"
DELETED = "_deleted"
"""Marks rows of a load that are there to delete one; never in the lake."""
DELETED_AT = "_deleted_at"
"""When the source deleted a row that the lake keeps; UTC."""
PLACE = "_place"
"""Where a delivered row stands in its source: `orders.csv:17`. Only the quarantine keeps it."""
_LOG_PRECISION = timedelta(milliseconds=1)
MEMORY = "512MB"
"""What DuckDB may hold for all tables that are being loaded, before it spills."""


class Desk:
    """The lake and one DuckDB to read it, for all threads of a run. Loading the extensions takes
    DuckDB longer than most of what it is asked."""

    def __init__(self, lake: Lake, folder: Path) -> None:
        self.lake, self.folder = lake, folder
        self._connection = duckdb.connect()
        self._connection.execute(f"set memory_limit = '{MEMORY}'")
        self._connection.execute("set temp_directory = ?", [str(folder)])
        prepare(self._connection, lake)

    @contextmanager
    def session(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one thread; what it registers is its own."""
        with self._connection.cursor() as cursor:
            cursor.execute("set TimeZone = 'UTC'")
            yield cursor

    def held(self, file: str) -> str:
        """Where a file of the lake is held that no table has yet; elsewhere in a rehearsal."""
        return f"{self.folder if self.lake.is_rehearsal else self.lake.root}/{file}"

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Landed:
    """A raw table as it was when the load began; it may not exist."""

    desk: Desk
    name: str
    span: Span | None = None
    """Values of the cursor to which the load is restricted."""
    is_anew: bool = False
    """The load is to begin as if there were no table."""

    @property
    def table(self) -> DeltaTable | None:
        """What the load goes on from."""
        return None if self.is_anew else self.kept

    @cached_property
    def kept(self) -> DeltaTable | None:
        """What the lake has."""
        return self.desk.lake.table(self.name)

    @property
    def for_source(self) -> "Landed":
        """As the source is to see it: of a span all is wanted, whatever has landed."""
        return replace(self, is_anew=True) if self.span else self

    def again(self) -> "Landed":
        """The same table as it is now."""
        return replace(self)

    @cached_property
    def schema(self) -> pa.Schema | None:
        """Arrow schema of the table's own columns, without those that every raw table has."""
        if self.table is None:
            return None
        schema = pa.schema(self.table.schema().to_arrow())
        return pa.schema([field for field in schema if field.name not in (LOAD_ID, LOADED_AT)])

    @cached_property
    def rows(self) -> int:
        if self.kept is None:
            return 0
        return int(self._fetch(f"select count(*) from ({self.select})"))

    @property
    def select(self) -> str:
        """SQL that reads the table, of a span its rows."""
        assert self.kept is not None
        rows = select_from(self.kept)
        return f"select * from ({rows}) where {self.in_span}" if self.span else rows

    @property
    def in_span(self) -> str:
        """Condition on the span's rows; true without span."""
        return self.span.condition(self._span_type) if self.span else "true"

    @property
    def predicate(self) -> str:
        """The same in delta-rs's SQL."""
        assert self.span is not None
        return self.span.predicate(self._span_type)

    @property
    def _span_type(self) -> pa.DataType:
        assert self.kept is not None
        assert self.span is not None
        return pa.schema(self.kept.schema().to_arrow()).field(self.span.column).type

    @cached_property
    def loaded_until(self) -> datetime | None:
        """No row was loaded later than this, by the clock of its load; UTC without zone."""
        if self.kept is None or LOADED_AT not in self.kept.schema().to_arrow().names:
            return None
        files = self._files
        latest = f"max.{LOADED_AT}"
        if latest in files.column_names and not files[latest].null_count:
            # The log cuts instants to milliseconds.
            told = pc.max(files[latest]).as_py()
        else:
            told = self._fetch(f"select max({quoted(LOADED_AT)}) from ({select_from(self.kept)})")
        return told.replace(tzinfo=None) + _LOG_PRECISION if isinstance(told, datetime) else None

    def maximum(self, column: str) -> Any:
        """The highest value of a column; None without table, column or value."""
        if self.schema is None or column not in self.schema.names:
            return None
        return self._fetch(f"select max({quoted(column)}) from ({self.select})")

    def nulls(self, column: str) -> int:
        """Rows that have no value in a column."""
        files = self._files
        counts = f"null_count.{column}"
        if counts in files.column_names and not files[counts].null_count:
            return int(pc.sum(files[counts]).as_py() or 0)
        name = quoted(column)
        return int(self._fetch(f"select count(*) - count({name}) from ({self.select})"))

    def share_of_nulls(self, column: str) -> float:
        """How likely a row has no value in a column, by the rows there are: never 0, and 1 if
        there are none."""
        return (self.nulls(column) + 1) / (self.rows + 2) if self.rows else 1.0

    def from_on(self, column: str, value: Any) -> str:
        """Condition on the rows whose `column` is `value`, higher, or unknown."""
        name = quoted(column)
        return f"({name} >= {duckdb.ConstantExpression(value)} or {name} is null)"

    @cached_property
    def _files(self) -> pa.Table:
        """What the log tells of each file."""
        assert self.kept is not None
        return pa.table(self.kept.get_add_actions(flatten=True))

    def _fetch(self, sql: str) -> Any:
        with self.desk.session() as connection:
            row = connection.execute(sql).fetchone()
            return row[0] if row else None
