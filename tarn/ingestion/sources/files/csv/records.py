"""Cuts bytes into records at the speed of memory, and tells which of them are malformed.

Quotes are followed from record to record. Where one stands that no rule allows, its line alone is
given up and reading goes on at the next: an unclosed quote does not swallow what follows.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

Positions: TypeAlias = NDArray[np.int64]
WINDOW = 8 << 20
"""Bytes looked at together."""
_AFTER_TROUBLE = 1 << 16
_LONGEST = 32 << 20
"""No record is as long as this: a quote is not closed."""
_ORDINARY = ord("x")
STRAY_QUOTE = "a quote is not closed, or stands where none may"
_LINE_END = "a line end of another kind than the file's"
_ESCAPE = "a backslash before what needs none"
_NUL = "a NUL byte"
_NOT_UTF8 = "bytes that are not text in the file's encoding"


@dataclass(frozen=True)
class Dialect:
    """How bytes become fields. Each mark is one byte; None where there is none."""

    delimiter: bytes
    quote: bytes | None = b'"'
    escape: bytes | None = None
    """A backslash, or None: a quote within quotes is doubled."""
    newline: bytes = b"\n"
    """The last byte of a line end."""

    def __str__(self) -> str:
        quote = f", quote {self.quote.decode()}" if self.quote else ", no quotes"
        escape = ", escape \\" if self.escape else ""
        ends = ", lines end with CR" if self.newline == b"\r" else ""
        name = _NAMES.get(self.delimiter, self.delimiter.decode(errors="replace"))
        return f"delimiter {name}{quote}{escape}{ends}"


_NAMES = {b"\t": "tab", b" ": "space", b"\x01": "\\x01", b"\x1f": "\\x1f"}


@dataclass(frozen=True)
class Records:
    """The records of a window, in order. Positions count from the window's first byte."""

    data: bytes
    starts: Positions
    ends: Positions
    """Behind the line end."""
    fields: Positions
    """0 for a line without anything."""
    lines: Positions
    """Line on which each begins, from 1."""
    faults: dict[int, str]
    """What is wrong with records, by their index."""
    quoted: int = 0
    """Fields in quotes."""

    def text(self, index: int) -> bytes:
        return self.data[self.starts[index] : self.ends[index]]

    @cached_property
    def is_one_line_each(self) -> bool:
        return len(self.lines) < 2 or bool((np.diff(self.lines) == 1).all())


def scan(file: BinaryIO, dialect: Dialect, line: int = 1) -> Iterator[Records]:
    """All records from where a file stands to its end."""
    rest, size, is_last = b"", WINDOW, False
    while True:
        if not is_last and len(rest) < size:
            more = file.read(size - len(rest) + WINDOW)
            is_last = len(more) < size - len(rest) + WINDOW
            rest += more
        if not rest:
            return
        data = rest[:size]
        records = cut(data, dialect, line, is_last and len(data) == len(rest))
        used = int(records.ends[-1]) if len(records.ends) else 0
        if not used:
            if len(data) >= _LONGEST or (is_last and len(data) == len(rest)):
                records = _one_line(data, dialect, line)
                used = int(records.ends[-1])
            else:
                size *= 2
                continue
        yield records
        line += _count(data[:used], dialect.newline)
        rest = rest[used:]
        # After trouble look at little: all behind it may have to be looked at again.
        size = _AFTER_TROUBLE if records.faults else min(WINDOW, size * 2)


def cut(data: bytes, dialect: Dialect, line: int, is_last: bool) -> Records:
    """The whole records at the beginning of `data`, up to and with the first malformed one."""
    view = np.frombuffer(data, np.uint8)
    plain = _without_escapes(data, view, dialect)
    newline, delimiter = dialect.newline[0], dialect.delimiter[0]
    breaks, splits = plain == newline, plain == delimiter
    quotes = np.flatnonzero(plain == dialect.quote[0]) if dialect.quote else _NOTHING
    stray, inside, quoted = -1, None, 0
    if len(quotes):
        inside = _inside(quotes, len(plain))
        breaks, splits = breaks & ~inside, splits & ~inside
        stray, quoted = _stray(plain, quotes, dialect, is_last)
    ends = np.flatnonzero(breaks) + 1
    if is_last and (not len(ends) or ends[-1] < len(data)):
        ends = np.append(ends, len(data))
        if inside is not None and inside[-1] and stray < 0:
            stray = int(quotes[-1])
    if stray >= 0:
        ends = ends[ends <= stray]
    records = _table(data, plain, ends, np.flatnonzero(splits), line, dialect)
    _find_faults(records, view, plain, inside, dialect)
    records = Records(**{**vars(records), "quoted": quoted})
    if stray >= 0 and not len(ends):
        return _one_line(data, dialect, line)
    return records


_NOTHING = np.empty(0, np.int64)


def _table(
    data: bytes, plain: NDArray[Any], ends: Positions, splits: Positions, line: int, way: Dialect
) -> Records:
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else _NOTHING
    before = np.searchsorted(splits, ends)
    fields = np.diff(before, prepend=0) + 1 if len(ends) else _NOTHING
    lengths = ends - starts
    fields[(lengths == 1) & (plain[starts] == way.newline[0])] = 0
    if way.newline == b"\n":
        fields[(lengths == 2) & (plain[starts] == 13) & (plain[ends - 1] == 10)] = 0
    lines = line + np.arange(len(starts))
    if way.quote and way.quote in data:
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == way.newline[0])
        lines = line + np.searchsorted(breaks, starts)
    return Records(data, starts, ends, fields, lines, {})


def _stray(
    plain: NDArray[Any], quotes: Positions, dialect: Dialect, is_last: bool
) -> tuple[int, int]:
    """The first quote that neither opens a field nor closes one, else -1; how many open one.

    The last of a window may close a field: what follows is not seen.
    """
    opening, closing = quotes[::2], quotes[1::2]
    marks = np.zeros(256, bool)
    marks[[dialect.delimiter[0], 10, 13]] = True
    before = plain[opening - 1]
    doubled = (opening > 0) & (before == plain[quotes[0]])
    opens = (opening == 0) | marks[before]
    bad = opening[~(opens | doubled)]
    inner = closing[closing + 1 < len(plain)]
    after = plain[inner + 1]
    bad_closing = inner[~(marks[after] | (after == plain[quotes[0]]))]
    if dialect.escape:
        bad = opening[~opens]
        bad_closing = inner[~marks[after]]
    first = min((int(found[0]) for found in (bad, bad_closing) if len(found)), default=-1)
    return first, int(opens.sum())


def _inside(quotes: Positions, size: int) -> NDArray[np.bool_]:
    """For each byte whether it is behind an opening quote and not behind its closing one."""
    runs = np.diff(quotes, prepend=0, append=size)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _without_escapes(data: bytes, view: NDArray[Any], dialect: Dialect) -> NDArray[Any]:
    """The bytes with what an escape stands before made ordinary."""
    if dialect.escape is None or dialect.escape not in data:
        return view
    plain = view.copy()
    for match in re.finditer(rb"\\.", data, re.S):
        plain[match.start() : match.end()] = _ORDINARY
    return plain


def _find_faults(
    records: Records, view: NDArray[Any], plain: NDArray[Any], inside: Any, dialect: Dialect
) -> None:
    """Bytes that a reader would take for something else, or for nothing."""
    if not len(records.ends):
        return
    data, used = records.data, int(records.ends[-1])
    other = 10 if dialect.newline == b"\r" else 13
    if bytes([other]) in data:
        lone = plain[:used] == other
        if other == 13:
            lone[:-1] &= plain[1:used] != 10
        if inside is not None:
            lone &= ~inside[:used]
        _blame(records, np.flatnonzero(lone), _LINE_END)
    if b"\0" in data:
        _blame(records, np.flatnonzero(view[:used] == 0), _NUL)
    if dialect.escape and dialect.escape in data:
        known = rb"\\(?![\\" + re.escape((dialect.quote or b"") + dialect.delimiter) + rb"])."
        pairs = re.finditer(rb"\\.", data[:used], re.S)
        odd = [pair.start() for pair in pairs if re.match(known, pair[0], re.S)]
        _blame(records, np.array(odd, np.int64), _ESCAPE)
    _blame(records, _undecodable(data[:used]), _NOT_UTF8)


def _blame(records: Records, positions: Positions, why: str) -> None:
    for index in np.unique(np.searchsorted(records.ends, positions, side="right")):
        records.faults.setdefault(int(index), why)


def _undecodable(data: bytes) -> Positions:
    """Where bytes are not UTF-8, a record at a time at most."""
    found, at = [], 0
    while True:
        try:
            data[at:].decode()
        except UnicodeDecodeError as error:
            found.append(at + error.start)
            at = data.find(b"\n", at + error.start) + 1
            if at:
                continue
        return np.array(found, np.int64)


def _one_line(data: bytes, dialect: Dialect, line: int) -> Records:
    """The first line as a malformed record of its own."""
    end = data.find(dialect.newline) + 1 or len(data)
    one = np.array([0]), np.array([end]), np.array([1]), np.array([line])
    return Records(data, *one, faults={0: STRAY_QUOTE})


def _count(data: bytes, newline: bytes) -> int:
    return data.count(newline)
