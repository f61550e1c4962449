"""One text table: checked as a whole, then read as Arrow batches of text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from tarn.ingestion.landed import PLACE, SOURCE_FILE
from tarn.ingestion.sources import BATCH_ROWS, Rejected
from tarn.ingestion.sources.files.broken import BrokenFileError
from tarn.ingestion.sources.files.csv.dialects import SEPARATOR, Sniffed, cells, sniff
from tarn.ingestion.sources.files.csv.layout import is_header_like, lay_out
from tarn.ingestion.sources.files.csv.records import Dialect, Positions, Records, scan

HEAD = 1 << 20
"""Bytes by which dialect and layout are told."""
_MOST_BAD = 0.2
"""Share of lines that may not fit: beyond it the file is not the table it seems to be."""
_ANOTHER_TABLE = 4
"""So many lines in a row of one other width are another table."""
_TOTAL = re.compile(
    r"\W*((grand|sub)[ -]?)?(total|totals|totaal|totale|sum|summe|somme|suma|gesamt)\b.*", re.I
)
_LAST = 3
"""Lines at the end that may be totals."""
_LONGEST_TOLD = 2000
_MARKS = 3
"""Columns of values that are looked at to notice a header among the rows."""


@dataclass(frozen=True)
class Options:
    """What is declared of text tables; None is found out."""

    delimiter: str | None = None
    quote: str | None = None
    escape: str | None = None
    header_row: int | None = None
    columns: tuple[str, ...] = ()


@dataclass
class _Window:
    """A stretch of the file and which of its records are rows."""

    offset: int
    size: int
    rows: int
    lines: Positions | None
    """Line of each row, where they are not one after the other."""
    first: int
    """Line of the first row."""
    without: list[tuple[int, int]]
    """Stretches that are no rows."""
    rejected: list[tuple[int, str, bytes]]
    """Line, reason and bytes of records that are no rows but must be told."""


@dataclass
class _Tally:
    """What a scan has met."""

    rows: int = 0
    blank: int = 0
    wrong: list[tuple[int, int, int]] = field(default_factory=list)
    """Number of the record, line and width of those that have another width."""
    faults: int = 0


class TextTable:
    """A file of UTF-8, `name` in messages; its rows say they are from `path`."""

    def __init__(self, file: Path, name: str, path: str, options: Options, scratch: Path) -> None:
        """Raises BrokenFileError if the file is not one clear table."""
        self.name, self.path = name, path
        self.spelled, self.file = b"", file
        self.windows: list[_Window] = []
        sniffed = self._sniffed(options)
        self.dialect, self.layout = (
            sniffed.dialect,
            lay_out(sniffed, options.header_row, options.columns),
        )
        if len(sniffed.spelled) > 1:
            self.spelled = sniffed.spelled
            self.file = _respelled(file, sniffed.spelled, scratch)
        self.tally = self._checked()
        self.notes = self._notes()

    @property
    def names(self) -> tuple[str, ...]:
        return self.layout.kept

    @property
    def described(self) -> str:
        mark = f"delimiter {self.spelled.decode()!r}" if self.spelled else str(self.dialect)
        return f"{mark}, {len(self.names)} columns"

    def batches(self) -> Iterator[pa.RecordBatch | Rejected]:
        """Rows as text with their `_place`, and lines that are no rows."""
        with self.file.open("rb") as opened:
            for window in self.windows:
                opened.seek(window.offset)
                data = opened.read(window.size)
                for line, why, text in window.rejected:
                    yield self._rejected(line, why, text)
                if window.rows:
                    table = self._parsed(data, window)
                    self._check_marks(table, window)
                    yield from self._placed(table, window).to_batches(max_chunksize=BATCH_ROWS)

    def _sniffed(self, options: Options) -> Sniffed:
        with self.file.open("rb") as opened:
            head = opened.read(HEAD)
            if len(head) == HEAD:
                head = head[: max(head.rfind(b"\n"), head.rfind(b"\r")) + 1] or head
        if not head.strip(b"\0 \t\r\n"):
            raise BrokenFileError("the file is blank")
        return sniff(head, options.delimiter, options.quote, options.escape)

    def _checked(self) -> _Tally:
        """Scan all records; raises BrokenFileError if they are not one table."""
        tally, offset, records = _Tally(), 0, None
        with self.file.open("rb") as opened:
            for records in scan(opened, self.dialect):
                self.windows.append(self._window(records, offset, tally))
                offset += int(records.ends[-1])
        if records is not None:
            self._take_out_totals(records)
        self._check_tally(tally)
        return tally

    def _window(self, records: Records, offset: int, tally: _Tally) -> _Window:
        fields, lines = records.fields, records.lines
        below = lines >= self.layout.data_line
        reasons = dict(records.faults)
        blank = (fields == 0) | self._all_empty(records)
        wrong = below & ~blank & (fields != self.layout.columns)
        wrong[list(records.faults)] = False
        seen = tally.rows + tally.blank + len(tally.wrong) + tally.faults
        for i in np.flatnonzero(wrong):
            reasons[int(i)] = f"{fields[i]} fields, not {self.layout.columns}"
            tally.wrong.append((seen + int(i), int(lines[i]), int(fields[i])))
        reasons.update(self._unlike_rows(records))
        reasons = {i: why for i, why in reasons.items() if below[i]}
        good = below & ~blank
        good[list(reasons)] = False
        self._check_blank(records, blank & below, good)
        tally.rows += int(good.sum())
        tally.blank += int((blank & below).sum())
        tally.faults += len(reasons) - int(wrong.sum())
        return _window_of(records, offset, good, reasons)

    def _all_empty(self, records: Records) -> Any:
        """Records of nothing but delimiters."""
        width = self.layout.columns
        found = np.zeros(len(records.ends), bool)
        if width > 1:
            nothing = self.dialect.delimiter * (width - 1)
            short = records.ends - records.starts <= width + 1
            for i in np.flatnonzero(short & (records.fields == width)):
                found[i] = records.text(int(i)).rstrip(b"\r\n") == nothing
        return found

    def _unlike_rows(self, records: Records) -> dict[int, str]:
        """Second headers, the header again, and fields that have swallowed lines."""
        found = {}
        for line, why in self.layout.rejected.items():
            at = int(np.searchsorted(records.lines, line))
            if at < len(records.lines) and records.lines[at] == line:
                found[at] = why
        header = self.layout.header.rstrip(b"\r\n")
        if header and self.layout.columns > 1:
            for i in _beginning_with(records, header):
                if records.lines[i] >= self.layout.data_line:
                    found[int(i)] = "the header again"
        if not records.is_one_line_each:
            found.update(self._swallowing(records))
        return found

    def _swallowing(self, records: Records) -> dict[int, str]:
        """Records of several lines of which one by itself would be a row."""
        found = {}
        width = self.layout.columns
        for i in np.flatnonzero(np.diff(records.lines) > 2) if width > 2 else ():
            inner = records.text(int(i)).split(self.dialect.newline)[1:-2]
            if any(line.count(self.dialect.delimiter) == width - 1 for line in inner):
                found[int(i)] = "lines in quotes that look like rows: a quote may be missing"
        return found

    def _check_blank(self, records: Records, blank: Any, good: Any) -> None:
        """Raise BrokenFileError where another table begins behind a blank line."""
        behind = np.flatnonzero(blank[:-1] & good[1:]) + 1
        for i in behind[:10_000]:
            found = cells(records.text(int(i)), self.dialect)
            if is_header_like(found, self.layout.typed):
                raise BrokenFileError(f"another table begins on line {records.lines[i]}")

    def _take_out_totals(self, records: Records) -> None:
        """Reject lines of totals at the end."""
        window = self.windows[-1]
        fitting = np.flatnonzero(
            (records.fields == self.layout.columns) & (records.lines >= self.layout.data_line)
        )
        for i in fitting[-_LAST:]:
            found = cells(records.text(int(i)), self.dialect)
            filled = [cell for cell in found if cell.strip()]
            is_total = bool(filled) and bool(_TOTAL.fullmatch(filled[0]))
            span = (int(records.starts[i]), int(records.ends[i]))
            if is_total and len(filled) < len(found) and window.rows:
                lines = _lines(window)
                window.lines = lines[lines != records.lines[i]]
                window.rows -= 1
                window.without = sorted([*window.without, span])
                why = "looks like a line of totals"
                window.rejected.append((int(records.lines[i]), why, records.text(int(i))))

    def _check_tally(self, tally: _Tally) -> None:
        bad = len(tally.wrong) + tally.faults
        for (a, line, width), (b, _, other) in zip(
            tally.wrong, tally.wrong[_ANOTHER_TABLE - 1 :], strict=False
        ):
            if b - a == _ANOTHER_TABLE - 1 and width == other > 1:
                what = f"from line {line} on its lines have {width} fields"
                raise BrokenFileError(f"{what}, those before {self.layout.columns}")
        if (bad > 1 and bad > _MOST_BAD * (tally.rows + bad)) or (bad and not tally.rows):
            first = next((rejected for each in self.windows for rejected in each.rejected), None)
            example = f", the first on line {first[0]}: {first[1]}" if first else ""
            raise BrokenFileError(f"{bad} of {tally.rows + bad} lines are no rows{example}")

    def _notes(self) -> tuple[str, ...]:
        notes = list(self.layout.notes)
        if self.tally.blank and any(len(window.without) > 0 for window in self.windows):
            inner = self.tally.blank
            notes.append(f"{inner} blank {'line' if inner == 1 else 'lines'} left out")
        return tuple(notes)

    def _parsed(self, data: bytes, window: _Window) -> pa.Table:
        """The rows of a window; raises BrokenFileError if the parser sees other records."""
        names = [str(i) for i in range(self.layout.columns)]
        try:
            table = pacsv.read_csv(
                pa.BufferReader(_without(data, window.without)),
                pacsv.ReadOptions(column_names=names, block_size=1 << 20),
                _parse_options(self.dialect),
                _convert_options(names, len(self.names)),
            )
        except pa.ArrowInvalid as error:
            raise BrokenFileError(str(error)) from error
        if table.num_rows != window.rows:
            raise BrokenFileError(
                f"{window.rows} records from line {window.first} on are parsed as {table.num_rows}"
            )
        if self.spelled:
            table = _with_delimiters(table, self.spelled.decode())
        return table.rename_columns(list(self.names))

    def _check_marks(self, table: pa.Table, window: _Window) -> None:
        """Raise BrokenFileError for a header of another table among the rows."""
        marks = [i for i in self.layout.typed if i < table.num_columns][:_MARKS]
        if len(marks) < 2:
            return
        lettered = np.ones(table.num_rows, bool)
        for i in marks:
            lettered &= _begin_with_letter(table.column(i))
        for row in np.flatnonzero(lettered)[:100]:
            found = [str(table.column(i)[int(row)].as_py() or "") for i in range(len(self.names))]
            distinct = len(set(found)) == len(found) and all(found)
            if distinct and is_header_like(found, self.layout.typed):
                line = int(_lines(window)[row])
                raise BrokenFileError(f"line {line} looks like the header of another table")

    def _placed(self, table: pa.Table, window: _Window) -> pa.Table:
        lines = pa.array(_lines(window)).cast(pa.string())
        places = pc.binary_join_element_wise(pa.scalar(self.name), lines, ":")
        return table.append_column(PLACE, places)

    def _rejected(self, line: int, why: str, text: bytes) -> Rejected:
        told = text[:_LONGEST_TOLD].decode("utf-8", "replace").rstrip("\r\n")
        row = {"line": told.replace("\x1f", self.spelled.decode()) if self.spelled else told}
        return Rejected({**row, SOURCE_FILE: self.path}, why, f"{self.name}:{line}")


def _window_of(records: Records, offset: int, good: Any, reasons: dict[int, str]) -> _Window:
    lines = records.lines[good]
    is_even = not len(lines) or int(lines[-1] - lines[0]) == len(lines) - 1
    without = [
        (int(records.starts[first]), int(records.ends[last])) for first, last in _runs(~good)
    ]
    rejected = [(int(records.lines[i]), why, records.text(i)) for i, why in sorted(reasons.items())]
    return _Window(
        offset,
        int(records.ends[-1]),
        len(lines),
        None if is_even else lines.astype(np.int64),
        int(lines[0]) if len(lines) else 0,
        without,
        rejected,
    )


def _runs(mask: Any) -> Iterator[tuple[int, int]]:
    """First and last position of each run of true."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    yield from zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True)


def _lines(window: _Window) -> Positions:
    if window.lines is not None:
        return window.lines
    return np.arange(window.first, window.first + window.rows)


def _without(data: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    if not spans:
        return data
    edges = [0, *(edge for span in spans for edge in span), len(data)]
    kept = [data[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return b"".join(kept)


def _beginning_with(records: Records, header: bytes) -> list[int]:
    """Records that are this one."""
    lengths = records.ends - records.starts
    found = np.flatnonzero((lengths >= len(header)) & (lengths <= len(header) + 2))
    view = np.frombuffer(records.data, np.uint8)
    for i, byte in enumerate(header[:8]):
        found = found[view[records.starts[found] + i] == byte]
    return [int(i) for i in found if records.text(int(i)).rstrip(b"\r\n") == header]


def _begin_with_letter(column: pa.ChunkedArray) -> Any:
    """For each text whether its first byte is an ASCII letter."""
    parts = []
    for chunk in column.chunks:
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[
            chunk.offset : chunk.offset + len(chunk) + 1
        ]
        held = chunk.buffers()[2]
        data = np.frombuffer(held, np.uint8) if held and held.size else np.zeros(1, np.uint8)
        first = data[np.minimum(offsets[:-1], len(data) - 1)] | 0x20
        parts.append((first >= 97) & (first <= 122) & (offsets[1:] > offsets[:-1]))
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def _parse_options(dialect: Dialect) -> Any:
    return pacsv.ParseOptions(
        delimiter=dialect.delimiter.decode(),
        quote_char=dialect.quote.decode() if dialect.quote else False,
        escape_char=dialect.escape.decode() if dialect.escape else False,
        newlines_in_values=dialect.quote is not None,
        ignore_empty_lines=False,
    )


def _convert_options(names: Sequence[str], kept: int) -> Any:
    return pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
        include_columns=names[:kept],
    )


def _respelled(file: Path, spelled: bytes, scratch: Path) -> Path:
    """The file with one byte for a delimiter of several; raises BrokenFileError if it has it."""
    target = scratch / f"{file.name}.respelled"
    with file.open("rb") as opened, target.open("wb") as written:
        rest = b""
        while block := opened.read(HEAD):
            if SEPARATOR in block:
                raise BrokenFileError("the file has control characters; say csv: {delimiter: …}")
            block = rest + block
            cut = len(block) - len(spelled) + 1
            if (found := block.rfind(spelled)) >= 0:
                cut = max(cut, found + len(spelled))
            written.write(block[:cut].replace(spelled, SEPARATOR))
            rest = block[cut:]
        written.write(rest.replace(spelled, SEPARATOR))
    return target


def _with_delimiters(table: pa.Table, spelled: str) -> pa.Table:
    """What stood within quotes, as it stood."""
    mark = SEPARATOR.decode()
    columns = [pc.replace_substring(column, mark, spelled) for column in table.columns]
    return pa.table(columns, names=table.column_names)
