"""Which marks separate a text table's fields and records: those that make it most regular."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tarn.ingestion.sources.files.broken import BrokenFileError
from tarn.ingestion.sources.files.csv.records import Dialect, Records, cut

SEPARATOR = b"\x1f"
"""Put in place of a delimiter of several bytes."""
_DELIMITERS = (b",", b";", b"\t", b"|", b"^", b"~", SEPARATOR, b"\x01", b":", b" ")
_PAIRS = (b", ", b"; ", b"||", b"::")
_STRONG = re.compile(r"[,;\t|^~\x1f\x01]")
_SAMPLED = 60
_CLEAR = 0.03
"""Two dialects closer than this explain a file equally well."""
NUMBER = re.compile(r"[-+(]?\s*[$€£]?\s*[-+]?\d[\d.,'\u2019 ]*(e[-+]?\d+)?\s*[%€$£]?\s*\)?-?", re.I)
INSTANT = re.compile(
    r"(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4})?[T ]?(\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?)?"
    r"\s*([ap]m)?(Z|[-+]\d{2}:?\d{2})?",
    re.I,
)


@dataclass(frozen=True)
class Sniffed:
    """A dialect, and how well a sample of bytes fits it."""

    dialect: Dialect
    spelled: bytes
    """The delimiter as the file has it, of one or more bytes."""
    columns: int
    score: float
    quoted: int
    records: Records


def sniff(head: bytes, delimiter: str | None, quote: str | None, escape: str | None) -> Sniffed:
    """The dialect of a file that begins with `head`, whole lines in UTF-8.

    What is not None is settled. Raises BrokenFileError if two dialects fit equally well.
    """
    found = [
        _tried(head, spelled, Dialect(SEPARATOR if len(spelled) > 1 else spelled, q, e, newline))
        for newline in _newlines(head)
        for spelled in _spellings(head, delimiter)
        for q in _quotes(head, quote, spelled)
        for e in _escapes(head, q, escape)
    ]
    best = max(found, key=lambda each: each.score)
    if best.columns < 2 or (best.score < 0.4 and delimiter is None):
        return _single_column(found, best, delimiter)
    rivals = [each for each in found if each.score > best.score - _CLEAR and each.columns > 1]
    best = _preferred(best, rivals)
    others = {each.spelled for each in rivals} - {best.spelled, *_related(best, rivals)}
    if others:
        marks = " or ".join(repr(each.decode()) for each in sorted({best.spelled, *others}))
        raise BrokenFileError(f"the delimiter is not clear, {marks}; say csv: {{delimiter: …}}")
    return best


def cells(text: bytes, dialect: Dialect) -> list[str]:
    """The fields of one record."""
    line = text.decode("utf-8", "replace").rstrip("\r\n").replace("\0", "")
    reader = csv.reader(
        [line] if "\n" not in line and "\r" not in line else line.splitlines(keepends=True),
        delimiter=dialect.delimiter.decode(),
        quotechar=dialect.quote.decode() if dialect.quote else None,
        escapechar=dialect.escape.decode() if dialect.escape else None,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
    )
    return next(reader, [])


def is_value(cell: str) -> bool:
    """Whether a cell holds a number, a date or a time: no column is called so."""
    cell = cell.strip()
    return any(map(str.isdigit, cell)) and bool(NUMBER.fullmatch(cell) or INSTANT.fullmatch(cell))


def _newlines(head: bytes) -> Iterator[bytes]:
    """Lines end with CR in files from old Macs, whose quoted fields may hold an LF."""
    has_lone = re.search(rb"\r(?!\n)", head) is not None
    if not has_lone or b"\n" in head:
        yield b"\n"
    if has_lone:
        yield b"\r"


def _spellings(head: bytes, delimiter: str | None) -> Iterator[bytes]:
    if delimiter is not None:
        yield delimiter.encode()
        return
    yield from (each for each in (*_DELIMITERS, *_PAIRS) if each in head or each == b",")


def _quotes(head: bytes, quote: str | None, delimiter: bytes) -> Iterator[bytes | None]:
    """A double quote may be a mere sign (5" wide), but not at the beginning of a field."""
    if quote is not None:
        yield quote.encode() or None
        return
    yield b'"'
    if b"'" in head:
        yield b"'"
    if b'"' in head and not re.search(rb"(^|[\r\n]|" + re.escape(delimiter) + rb')"', head):
        yield None


def _escapes(head: bytes, quote: bytes | None, escape: str | None) -> Iterator[bytes | None]:
    if escape is not None:
        yield escape.encode() or None
        return
    yield None
    if quote and b"\\" + quote in head:
        yield b"\\"


def _tried(head: bytes, spelled: bytes, dialect: Dialect) -> Sniffed:
    if len(spelled) > 1:
        head = head.replace(spelled, dialect.delimiter)
    records = whole(head, dialect)
    good = np.ones(len(records.ends), bool)
    good[list(records.faults)] = False
    counts = Counter(records.fields[good & (records.fields > 0)].tolist())
    several = {count: times for count, times in counts.items() if count > 1}
    if not several:
        return Sniffed(dialect, spelled, 1, 0.0, records.quoted, records)
    columns = max(several, key=lambda count: (several[count], count))
    share = several[columns] / max(1, int((records.fields > 0).sum()))
    fitting = np.flatnonzero(good & (records.fields == columns))[:_SAMPLED]
    sample = [cell for i in fitting for cell in cells(records.text(int(i)), dialect)]
    tidy = [_is_tidy(cell) for cell in sample if cell]
    score = share * (0.3 + 0.7 * sum(tidy) / max(1, len(tidy)))
    return Sniffed(dialect, spelled, columns, score, records.quoted, records)


def whole(data: bytes, dialect: Dialect) -> Records:
    """All records of a sample, malformed ones among them."""
    parts, at, line = [], 0, 1
    while at < len(data):
        part = cut(data[at:], dialect, line, True)
        used = int(part.ends[-1])
        parts.append((at, part))
        line += data[at : at + used].count(dialect.newline)
        at += used
    if not parts:
        empty = np.empty(0, np.int64)
        return Records(data, empty, empty, empty, empty, {})
    sizes = np.cumsum([0, *(len(part.ends) for _, part in parts)])
    faults = {
        index + int(size): why
        for size, (_, part) in zip(sizes, parts, strict=False)
        for index, why in part.faults.items()
    }
    return Records(
        data,
        np.concatenate([part.starts + at for at, part in parts]),
        np.concatenate([part.ends + at for at, part in parts]),
        np.concatenate([part.fields for _, part in parts]),
        np.concatenate([part.lines for _, part in parts]),
        faults,
        sum(part.quoted for _, part in parts),
    )


def _is_tidy(cell: str) -> bool:
    """Whether nothing in a cell looks as if it should have been cut."""
    cell = cell.strip()
    return not _STRONG.search(cell) or bool(NUMBER.fullmatch(cell)) or " " in cell


def _single_column(found: Sequence[Sniffed], best: Sniffed, delimiter: str | None) -> Sniffed:
    """One column, if the first line has no delimiter; else nothing fits."""
    plain = [each for each in found if len(each.spelled) == 1]
    for each in plain if best.columns > 1 else ():
        first = each.records.fields[each.records.fields > 0][:1]
        if delimiter is None and first.size and first[0] > 1 and each.spelled not in b" :":
            raise BrokenFileError(
                "its lines have no common number of columns; say csv: {delimiter: …}"
            )
    chosen = next((each for each in plain if not each.records.faults), plain[0])
    return replace(chosen, columns=1)


def _preferred(best: Sniffed, rivals: Sequence[Sniffed]) -> Sniffed:
    """Of dialects that differ only in quotes the one that has found fields in them; the delimiter
    with its blank, where one follows each."""
    same = [each for each in rivals if each.dialect.delimiter == best.dialect.delimiter]
    best = max(
        same,
        key=lambda each: (
            bool(each.quoted and each.dialect.quote),
            each.dialect.quote == b'"',
            each.dialect.escape is None,
            each.score,
        ),
    )
    wider = [
        each
        for each in rivals
        if each.spelled.startswith(best.spelled)
        and len(each.spelled) > len(best.spelled)
        and each.columns in (best.columns, (best.columns + 1) // 2)
    ]
    return _preferred(wider[0], rivals) if wider else best


def _related(best: Sniffed, rivals: Sequence[Sniffed]) -> set[bytes]:
    """Delimiters that are part of the chosen one, or that found only a part of its columns."""
    return {
        each.spelled
        for each in rivals
        if each.spelled in best.spelled
        or best.spelled in each.spelled
        or (each.spelled in b" :" and best.spelled not in b" :")
    }
