"""What may be asked of a load beside its systems: which tables, which span, how much of it."""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import reduce
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tarn.errors import TarnError
from tarn.ingestion.types import shown
from tarn.storage import predicates
from tarn.storage.duck import quoted

_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")
_STEP = timedelta(microseconds=1)
_LAST_CHARACTER = "\U0010ffff"
_BACKFILL = "--backfill"
_FORMS = "write FROM..TO as months (2017-03..2017-05), days, moments or values of the cursor"


@dataclass(frozen=True)
class Span:
    """Values of a cursor from one to another. Of a period the whole is meant: 2017-05 ends with
    the last moment of May."""

    first: str
    last: str
    column: str = ""
    """Name of the cursor, when it is known."""

    @classmethod
    def read(cls, text: str) -> "Span":
        """From `FROM..TO`, or one period alone."""
        first, dots, last = (part.strip() for part in text.partition(".."))
        if not first or (dots and not last):
            raise TarnError(f"{text!r} is no span", _BACKFILL, _FORMS)
        return cls(first, last or first)

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"

    def of(self, column: str) -> "Span":
        return replace(self, column=column)

    def bounds(self, kind: pa.DataType) -> tuple[Any, Any]:
        """Lowest and highest value of a column of that type; raises TarnError if the span has
        none of it."""
        low, high = _period(self.first, kind)[0], _period(self.last, kind)[1]
        if low > high:
            raise TarnError(f"{self} ends before it begins", _BACKFILL, _FORMS)
        return low, high

    def moments(self) -> tuple[datetime, datetime] | None:
        """First and last moment in UTC, if these are dates."""
        try:
            low, high = self.bounds(pa.timestamp("us"))
        except TarnError:
            return None
        return low, high

    def condition(self, kind: pa.DataType) -> str:
        """SQL for DuckDB that is true of the span's rows."""
        low, high = map(duckdb.ConstantExpression, self.bounds(kind))
        return f"coalesce({quoted(self.column)} between {low} and {high}, false)"

    def predicate(self, kind: pa.DataType) -> str:
        """The same in delta-rs's SQL."""
        name, (low, high) = predicates.column(self.column), self.bounds(kind)
        return f"{name} >= {predicates.value(low)} and {name} <= {predicates.value(high)}"

    def within(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch's rows that are of the span."""
        values = batch.column(self.column)
        low, high = (pa.scalar(bound, values.type) for bound in self.bounds(values.type))
        tests = [pc.greater_equal(values, low), pc.less_equal(values, high)]
        return batch.filter(pc.fill_null(reduce(pc.and_, tests), False))


@dataclass(frozen=True)
class Options:
    """How to load otherwise than all tables, from where the last load ended."""

    tables: tuple[str, ...] = ()
    """Only these: `table` or `system.table`."""
    backfill: Span | None = None
    """Read this span of the cursor again, and put it in place of what the lake has of it."""
    full_refresh: bool = False
    """Read everything again and put it in place of everything."""
    dry_run: bool = False
    """Read and check, but write nothing."""
    limit: int | None = None
    """At most so many rows of a table."""

    def __post_init__(self) -> None:
        if self.backfill and self.full_refresh:
            raise TarnError(
                "a full refresh reads every span", "--full-refresh", "leave out --backfill"
            )
        if self.limit and (self.backfill or self.full_refresh) and not self.dry_run:
            raise TarnError(
                "rows beyond the limit would be deleted", "--limit", "add --dry-run to look"
            )


EVERYTHING = Options()
"""All tables, from where the last load ended."""


def _period(text: str, kind: pa.DataType) -> tuple[Any, Any]:
    """The lowest and the highest value that a text stands for."""
    try:
        if pa.types.is_timestamp(kind):
            return _moments(text)
        if pa.types.is_date(kind) and _DATE.fullmatch(text):
            first, last = _moments(text)
            return first.date(), last.date()
        if pa.types.is_integer(kind):
            return int(text), int(text)
        if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
            return Decimal(text), Decimal(text)
    except (ValueError, InvalidOperation):
        pass
    else:
        if pa.types.is_string(kind):
            return text, text + _LAST_CHARACTER
    raise TarnError(f"{text!r} is no {shown(kind)}, as the cursor is", _BACKFILL, _FORMS)


def _moments(text: str) -> tuple[datetime, datetime]:
    """First and last microsecond of a year, month, day, minute or second."""
    if match := _DATE.fullmatch(text):
        year, month, day = (int(part or 1) for part in match.groups())
        first = datetime(year, month, day)
        after = first + timedelta(1)
        if not match[3]:
            after = (first + timedelta(32)).replace(day=1)
        if not match[2]:
            after = first.replace(year=year + 1)
        return first, after - _STEP
    first = datetime.fromisoformat(text)
    if first.tzinfo:
        first = first.astimezone(UTC).replace(tzinfo=None)
    colons = re.sub(r"([+-]\d{2}:?\d{2}|Z)$", "", text[10:]).count(":")
    step = timedelta(0) if "." in text else timedelta(seconds=1 if colons > 1 else 60) - _STEP
    return first, first + step
