"""Where in a text table its header is, and what stands above and below it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tarn.ingestion.sources.files.broken import BrokenFileError
from tarn.ingestion.sources.files.csv.dialects import Sniffed, cells, is_value

_NO_VALUE = {"", "n/a", "na", "n.a.", "nan", "null", "none", "nil", "-", "--", "?", ".", "\\n"}
_MOST_ABOVE = 50
_TYPED = 0.9
"""Share of a column's values that must be numbers or instants."""
_SAMPLED = 500
_EXTRA_HEADERS = 3


@dataclass(frozen=True)
class Row:
    """One record of a sample."""

    line: int
    cells: Sequence[str]

    @property
    def is_blank(self) -> bool:
        return not any(cell.strip() for cell in self.cells)


@dataclass(frozen=True)
class Layout:
    """The columns of a file, and the line its rows begin on."""

    names: tuple[str, ...]
    """As the file has them; what has no name is called by its position."""
    columns: int
    """Fields of each record."""
    data_line: int
    header: bytes = b""
    """The record that names the columns; it may come again."""
    typed: tuple[int, ...] = ()
    """Columns that hold numbers, dates or times."""
    rejected: Mapping[int, str] = field(default_factory=dict)
    """Lines behind the header that are no rows, and why."""
    notes: tuple[str, ...] = ()
    has_trailing: bool = False
    """Each record ends with a delimiter behind its last field."""

    @property
    def kept(self) -> tuple[str, ...]:
        return self.names[:-1] if self.has_trailing else self.names


def lay_out(sniffed: Sniffed, header_row: int | None, columns: Sequence[str]) -> Layout:
    """The layout of a file by the records it begins with.

    header_row is the line of the header if it is declared; columns are names that are declared,
    for all columns. Raises BrokenFileError for what cannot be one table with names.
    """
    rows = _rows(sniffed)
    if not any(not row.is_blank for row in rows):
        raise BrokenFileError("the file holds nothing but blank lines")
    if header_row is None and columns:
        first = next(row for row in rows if len(row.cells) == len(columns) and not row.is_blank)
        return _declared(columns, sniffed, first.line)
    at = _header_at(rows, sniffed, header_row)
    above, header, body = rows[:at], rows[at], rows[at + 1 :]
    width, has_trailing = _width(header, body, sniffed)
    typed = _typed([row for row in body if len(row.cells) == width][_EXTRA_HEADERS:], width)
    typed = typed or _typed([row for row in body if len(row.cells) == width], width)
    if header_row is None:
        _check_sound(sniffed, header)
        _check_header(header, above, body, typed, width)
    names = _names(header.cells, width, header.line)
    if columns:
        return _declared(columns, sniffed, header.line + 1)
    extra = {} if header_row else _extra_headers(header, body, typed, width)
    index = int((sniffed.records.lines == header.line).argmax())
    return Layout(
        names,
        width,
        header.line + 1,
        sniffed.records.text(index),
        typed,
        extra,
        _notes(above, names, header),
        has_trailing,
    )


def is_header_like(found: Sequence[str], typed: Sequence[int]) -> bool:
    """Whether a record names things: no value where the others have numbers or dates."""
    told = [found[i].strip() for i in typed if i < len(found)]
    there = [cell for cell in told if cell.casefold() not in _NO_VALUE]
    return bool(there) and not any(is_value(cell) for cell in told)


def _rows(sniffed: Sniffed) -> list[Row]:
    records = sniffed.records
    count = min(len(records.ends), _SAMPLED)
    return [
        Row(int(records.lines[i]), cells(records.text(i), sniffed.dialect))
        for i in range(count)
        if i not in records.faults
    ]


def _declared(columns: Sequence[str], sniffed: Sniffed, line: int) -> Layout:
    if sniffed.columns != len(columns):
        what = f"its lines have {sniffed.columns} fields, csv: {{columns: …}} names {len(columns)}"
        raise BrokenFileError(what)
    return Layout(tuple(columns), len(columns), line)


def _header_at(rows: Sequence[Row], sniffed: Sniffed, header_row: int | None) -> int:
    if header_row is not None:
        found = (i for i, row in enumerate(rows) if row.line == header_row and not row.is_blank)
        at = next(found, None)
        if at is None:
            raise BrokenFileError(f"line {header_row}, which is to be its header, is blank")
        return at
    width = sniffed.columns
    for i, row in enumerate(rows[: _MOST_ABOVE + 1]):
        filled = sum(bool(cell.strip()) for cell in row.cells)
        is_title = width > 2 and filled == 1
        is_remark = str(row.cells[0] if row.cells else "").startswith("#") and not _is_named(
            rows, i, width
        )
        fits = len(row.cells) == width or _is_short_by_trailing(row, rows[i + 1 :], width)
        if fits and filled and not is_title and not is_remark:
            return i
    raise BrokenFileError(
        f"no line among the first {_MOST_ABOVE} is its header; say csv: {{header_row: …}}"
    )


def _is_named(rows: Sequence[Row], at: int, width: int) -> bool:
    """Whether a line that begins like a remark is the header: the next is a row."""
    below = next((row for row in rows[at + 1 :] if len(row.cells) == width), None)
    return len(rows[at].cells) == width and (
        below is None or any(is_value(cell) for cell in below.cells)
    )


def _is_short_by_trailing(row: Row, below: Sequence[Row], width: int) -> bool:
    fitting = [each for each in below if len(each.cells) == width]
    is_empty = bool(fitting) and all(not each.cells[-1] for each in fitting)
    return len(row.cells) == width - 1 and is_empty


def _width(header: Row, body: Sequence[Row], sniffed: Sniffed) -> tuple[int, bool]:
    """Fields of a record, and whether the last is what follows a delimiter too many."""
    fitting = [row for row in body if len(row.cells) == sniffed.columns]
    nameless = len(header.cells) < sniffed.columns or not header.cells[-1].strip()
    all_empty = all(not row.cells[-1] for row in fitting)
    return sniffed.columns, sniffed.columns > 1 and nameless and all_empty and bool(fitting)


def _typed(rows: Sequence[Row], width: int) -> tuple[int, ...]:
    found = []
    for i in range(width):
        values = [row.cells[i].strip() for row in rows]
        values = [value for value in values if value.casefold() not in _NO_VALUE]
        if values and sum(map(is_value, values)) >= _TYPED * len(values):
            found.append(i)
    return tuple(found)


def _check_sound(sniffed: Sniffed, header: Row) -> None:
    """Raise BrokenFileError if what may have been the header is malformed."""
    records = sniffed.records
    for index, why in records.faults.items():
        if records.lines[index] < header.line:
            line = int(records.lines[index])
            raise BrokenFileError(f"line {line}, above or in its header, is malformed: {why}")


def _check_header(
    header: Row, above: Sequence[Row], body: Sequence[Row], typed: Sequence[int], width: int
) -> None:
    """Raise BrokenFileError if the first full line is no header, or not the only one."""
    is_data = any(is_value(header.cells[i]) for i in typed if i < len(header.cells))
    if is_data or (not typed and any(is_value(cell) for cell in header.cells)):
        raise BrokenFileError(
            f"it has no header: line {header.line} holds values;"
            " name its columns with csv: {columns: […]}, or its line with header_row"
        )
    near = above[-1] if above else None
    if near and near.line == header.line - 1 and len(near.cells) >= 2 and not near.is_blank:
        filled = sum(bool(cell.strip()) for cell in near.cells)
        if filled > 1 and len(near.cells) >= width / 2 and not near.cells[0].startswith("#"):
            raise BrokenFileError(
                f"line {near.line} has {len(near.cells)} fields, the lines below it {width};"
                " say csv: {header_row: …}"
            )
    if len(above) > len(body) + _EXTRA_HEADERS:
        raise BrokenFileError(
            f"more stands above its header (line {header.line}) than below it;"
            " say csv: {header_row: …}"
        )


def _names(found: Sequence[str], width: int, line: int) -> tuple[str, ...]:
    """The names in a header; what has none is called by its position."""
    names = [cell.strip() for cell in found] + [""] * (width - len(found))
    unnamed = sum(not name for name in names)
    if unnamed > 1 and unnamed * 3 > width:
        raise BrokenFileError(
            f"{unnamed} of {width} columns have no name on line {line}; say csv: {{header_row: …}}"
        )
    names = [name or f"column_{i}" for i, name in enumerate(names, 1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BrokenFileError(
            f"column {', '.join(twice)} is named twice on line {line};"
            " name the columns with csv: {columns: […]}"
        )
    return tuple(names)


def _extra_headers(
    header: Row, body: Sequence[Row], typed: Sequence[int], width: int
) -> Mapping[int, str]:
    """Lines between the header and the rows, such as units."""
    extra = {}
    for row in [row for row in body if not row.is_blank][:_EXTRA_HEADERS]:
        if len(row.cells) != width or not (
            is_header_like(row.cells, typed) or _lacks_values(row, typed, width)
        ):
            break
        extra[row.line] = "stands between the header and the rows: units, or a second header"
    nameless = any(not cell.strip() for cell in header.cells[:-1])
    if extra and nameless:
        raise BrokenFileError(
            f"its header is spread over {len(extra) + 1} lines from line {header.line} on;"
            " say csv: {header_row: …}"
        )
    return extra


def _lacks_values(row: Row, typed: Sequence[int], width: int) -> bool:
    """Whether a line has but words, where the rows have values: the rest of a header."""
    filled = [i for i, cell in enumerate(row.cells) if cell.strip()]
    return len(typed) > 1 and len(filled) <= width / 2 and not set(filled) & set(typed)


def _notes(above: Sequence[Row], names: Sequence[str], header: Row) -> tuple[str, ...]:
    notes = []
    lines = [row.line for row in above if not row.is_blank]
    if lines:
        notes.append(f"lines {lines[0]} to {header.line - 1} above the header left out")
    nameless = [name for name, cell in zip(names, header.cells, strict=False) if not cell.strip()]
    if nameless:
        notes.append(f"columns without a name: {', '.join(nameless)}")
    return tuple(notes)
