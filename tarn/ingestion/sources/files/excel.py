"""One sheet of a workbook: dates are dates, formulas are their values, a faulty cell is told."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from python_calamine import CalamineError, CalamineWorkbook

from tarn.ingestion.landed import PLACE, SOURCE_FILE
from tarn.ingestion.names import column_names
from tarn.ingestion.sources import BATCH_ROWS, Rejected
from tarn.ingestion.sources.files.broken import BrokenFileError
from tarn.ingestion.sources.files.faulty import faulty_cells

_ERRORS = ("#DIV/0!", "#N/A", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!", "#GETTING_DATA")
_EXACT = 2**53
_MOST_ABOVE = 30


class Sheet:
    """A table on a sheet; `name` is the file's in messages, `path` where its rows are from."""

    def __init__(
        self,
        file: Path,
        name: str,
        path: str,
        sheet: str | int,
        header_row: int | None,
        wanted: pa.Schema | None,
    ) -> None:
        """Types are found among the values, and are those of `wanted` where values fit them.

        Raises BrokenFileError if there is no such sheet, or no table on it.
        """
        self.notes: tuple[str, ...] = ()
        self.path, self.name = path, name
        rows = self._read(file, sheet)
        at = _header_at(rows, header_row)
        self.columns = _columns(rows[at], at + 1)
        if above := [i + 1 for i in range(at) if _filled(rows[i])]:
            self.notes = (f"rows {above[0]} to {at} above the header left out",)
        self.first = at + 2
        self.rows = rows[at + 1 :]
        self.schema = pa.schema(
            [(title, self._type(i, title, wanted)) for i, title in self.columns]
        )

    @property
    def described(self) -> str:
        return f"sheet {self.sheet}, {len(self.columns)} columns"

    def batches(self) -> Iterator[pa.RecordBatch | Rejected]:
        good: list[dict[str, Any]] = []
        schema = self.schema.append(pa.field(PLACE, pa.string()))
        for number, row in enumerate(self.rows, self.first):
            if not _filled(row):
                continue
            place = f"{self.name}#{self.sheet}!{number}"
            found = {title: row[i] if i < len(row) else "" for i, title in self.columns}
            if why := self._fault(row, found):
                told = {title: str(value) for title, value in found.items()}
                yield Rejected({**told, SOURCE_FILE: self.path}, why, place)
                continue
            cast = {
                title: _as(value, self.schema.field(title).type) for title, value in found.items()
            }
            good.append({**cast, PLACE: place})
            if len(good) == BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(good, schema=schema)
                good = []
        yield pa.RecordBatch.from_pylist(good, schema=schema)

    def check(self) -> None:
        """Read all; raises BrokenFileError if no row is one."""
        bad = good = 0
        for item in self.batches():
            if isinstance(item, Rejected):
                bad += 1
            else:
                good += item.num_rows
        if bad > 1 and bad > good:
            raise BrokenFileError(f"{bad} of {bad + good} rows do not fit")

    def _read(self, file: Path, sheet: str | int) -> list[list[Any]]:
        try:
            book = CalamineWorkbook.from_path(str(file))
            names = book.sheet_names
            if isinstance(sheet, str) and sheet not in names:
                raise BrokenFileError(f"no sheet {sheet!r}; it has {', '.join(names)}")
            if isinstance(sheet, int) and sheet > len(names):
                raise BrokenFileError(f"no sheet {sheet}; it has {len(names)}")
            self.sheet = sheet if isinstance(sheet, str) else names[sheet - 1]
            rows = list(book.get_sheet_by_name(self.sheet).to_python(skip_empty_area=False))
        except (CalamineError, OSError, ValueError) as error:
            raise BrokenFileError(f"it is no workbook that can be read: {error}") from error
        for row, column, text in faulty_cells(file, names.index(self.sheet)):
            # They come as if they were empty.
            if row < len(rows) and column < len(rows[row]):
                rows[row][column] = text
        return rows

    def _type(self, index: int, title: str, wanted: pa.Schema | None) -> pa.DataType:
        values = [row[index] for row in self.rows if index < len(row)]
        values = [value for value in values if value != "" and value not in _ERRORS]
        (name,) = column_names([title], self.name)
        known = wanted.field(name).type if wanted is not None and name in wanted.names else None
        fitting = sum(_fits(value, known) for value in values) if known is not None else 0
        if known is not None and fitting * 2 >= len(values):
            return known
        kinds = Counter(map(_kind, values))
        if len(kinds) == 1:
            (kind,) = kinds
            return kind
        if set(kinds) == {pa.int64(), pa.float64()}:
            return pa.float64()
        if set(kinds) == {pa.date32(), pa.timestamp("us")}:
            return pa.timestamp("us")
        return pa.string() if kinds else pa.null()

    def _fault(self, row: Sequence[Any], found: dict[str, Any]) -> str | None:
        """Why a row is none: a faulty cell, one beside the table, one of another type."""
        indexes = {i for i, _ in self.columns}
        if any(value != "" for i, value in enumerate(row) if i not in indexes):
            return "a cell beside the columns of the header"
        for title, value in found.items():
            if isinstance(value, str) and value in _ERRORS:
                return f"{title} is {value}"
            if not _fits(value, self.schema.field(title).type):
                return f"{title}: {value!r} is not {self.schema.field(title).type}"
        return None


def _filled(row: Sequence[Any]) -> int:
    return sum(value != "" for value in row)


def _header_at(rows: Sequence[Sequence[Any]], header_row: int | None) -> int:
    """The declared row, or the first that names as many columns as most rows have."""
    if header_row is not None:
        if header_row > len(rows) or not _filled(rows[header_row - 1]):
            raise BrokenFileError(f"row {header_row}, which is to be its header, is blank")
        return header_row - 1
    counts = Counter(_filled(row) for row in rows if _filled(row))
    if not counts:
        raise BrokenFileError("the sheet is blank")
    width = max(counts, key=lambda count: (counts[count], count))
    for i, row in enumerate(rows[:_MOST_ABOVE]):
        if _filled(row) >= width and _filled(row) > 0:
            if not all(isinstance(value, str) for value in row if value != ""):
                break
            return i
    raise BrokenFileError("no row is its header: the first full one holds values")


def _columns(header: Sequence[Any], number: int) -> list[tuple[int, str]]:
    """Position and name of each column that has a name."""
    titles = [(i, str(value).strip()) for i, value in enumerate(header) if str(value).strip()]
    names = [title for _, title in titles]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BrokenFileError(f"column {', '.join(twice)} is named twice in row {number}")
    return titles


def _kind(value: Any) -> pa.DataType:
    """A whole number is a double in a workbook: it counts as whole where all of a column are."""
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int | float):
        return pa.int64() if float(value).is_integer() and abs(value) < _EXACT else pa.float64()
    if isinstance(value, datetime):
        return pa.timestamp("us")
    return pa.date32() if isinstance(value, date) else pa.string()


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a cell's value is one of a type, exactly."""
    if value == "" or pa.types.is_string(kind):
        return True
    if pa.types.is_null(kind) or isinstance(value, str | time | timedelta):
        return False
    found = _kind(value)
    if pa.types.is_timestamp(kind):
        return found in (pa.timestamp("us"), pa.date32())
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        return found in (pa.int64(), pa.float64())
    return bool(found == kind or (pa.types.is_integer(kind) and found == pa.int64()))


def _as(value: Any, kind: pa.DataType) -> Any:
    if value == "":
        return None
    if pa.types.is_string(kind):
        return _text(value)
    if pa.types.is_timestamp(kind) and not isinstance(value, datetime):
        return datetime.combine(value, time())
    if pa.types.is_decimal(kind):
        from decimal import Decimal

        return Decimal(repr(value))
    return int(value) if pa.types.is_integer(kind) else value


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    return value.isoformat() if isinstance(value, date | time) else str(value)
