"""JSON: one object, an array of them, one after the other, or one a line. Strictly read.

What JSON's readers forgive is told instead: repeated keys, NaN, halves of characters. Numbers
that no column can hold exactly are kept as text.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tarn.ingestion.landed import PLACE, SOURCE_FILE
from tarn.ingestion.sources import Rejected
from tarn.ingestion.sources.files.broken import BrokenFileError
from tarn.ingestion.strict_json import Reader, exact_fraction, why

_BLOCK = 1 << 20
_MOST_BAD = 0.2
_SHOWN = 2000
_BLANK = re.compile(r"[ \t\n\r]*")


class JsonFile:
    """A file of UTF-8 whose name in messages is `name`; its rows say they are from `path`."""

    def __init__(self, file: Path, name: str, path: str) -> None:
        """Raises BrokenFileError if the file is not JSON, or holds nothing like a row."""
        self.file, self.name, self.path = file, name, path
        self.is_lines = self._is_lines()
        self.rows = 0
        self._check()

    @property
    def described(self) -> str:
        return "an object a line" if self.is_lines else "objects"

    def items(self) -> Iterator[dict[str, Any] | Rejected]:
        """Objects with their place, and what is none."""
        for text, at in self._lines() if self.is_lines else self._values():
            try:
                yield {**_STRICT.row(text), SOURCE_FILE: self.path, PLACE: f"{self.name}{at}"}
            except (ValueError, RecursionError) as error:
                line = text[:_SHOWN].encode("utf-8", "replace").decode()
                row = {"line": line, SOURCE_FILE: self.path}
                yield Rejected(row, why(error), f"{self.name}{at}")

    def _check(self) -> None:
        first, bad = None, 0
        for item in self.items():
            if isinstance(item, Rejected):
                bad += 1
                first = first or item
            else:
                self.rows += 1
        if first and (not self.rows or (bad > 1 and bad > _MOST_BAD * (bad + self.rows))):
            raise BrokenFileError(
                f"{bad} of {bad + self.rows} values are no rows, the first at"
                f" {first.place}: {first.reason}"
            )

    def _is_lines(self) -> bool:
        """Whether the first line is a value by itself, and not the only one."""
        with self._opened("surrogateescape") as text:
            first = next((line for line in text if line.strip()), "").strip()
            more = any(line.strip() for line in text)
        if not first:
            raise BrokenFileError("the file is blank")
        if not more or (first[0] in "[]" and first[-1:] != "]"):
            return False
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            named = re.search(r"\.(jsonl|ndjson|jsonlines)\b", self.name.lower())
            return bool(named) and first[0] != "[" and first != "{"
        return True

    def _lines(self) -> Iterator[tuple[str, str]]:
        with self._opened("surrogateescape") as text:
            for number, line in enumerate(text, 1):
                if line.strip(" \t\r\n"):
                    yield line.strip(" \t\r\n"), f":{number}"

    def _values(self) -> Iterator[tuple[str, str]]:
        """The text of each value of an array, or of each of several values."""
        try:
            with self._opened() as text:
                yield from _Cutter(text).values()
        except UnicodeDecodeError as error:
            raise BrokenFileError(f"it is not in UTF-8: {error}") from error

    def _opened(self, errors: str = "strict") -> TextIO:
        return self.file.open("r", encoding="utf-8", newline="\n", errors=errors)


class _Cutter:
    """Cuts a stream of JSON into the texts of its rows, a block at a time."""

    def __init__(self, text: TextIO) -> None:
        self.text, self.rest, self.is_last = text, "", False
        self.at = 0
        self.line = 1
        self.decoder = json.JSONDecoder()

    def values(self) -> Iterator[tuple[str, str]]:
        count = 0
        while self._next():
            if self._next() == "[":
                for element in self._elements():
                    yield element, f"[{count}]"
                    count += 1
            else:
                yield self._value(), f"[{count}]"
                count += 1

    def _elements(self) -> Iterator[str]:
        self.at += 1
        if self._next() == "]":
            self.at += 1
            return
        while True:
            yield self._value()
            mark = self._next()
            self.at += 1
            if mark == "]":
                return
            if mark != ",":
                self._refuse("a comma or ] is missing")

    def _next(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            blank = _BLANK.match(self.rest, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.rest):
                return self.rest[self.at]
            if not self._more():
                return ""

    def _value(self) -> str:
        self._next()
        while True:
            try:
                _, end = self.decoder.raw_decode(self.rest, self.at)
                if end < len(self.rest) or not self._more():
                    break
            except RecursionError:
                raise BrokenFileError("it is nested too deep") from None
            except ValueError as error:
                if not self._more():
                    self._refuse(getattr(error, "msg", str(error)))
        found = self.rest[self.at : end]
        self.at = end
        return found

    def _more(self) -> bool:
        if self.is_last:
            return False
        # What a value did not fit in is doubled, so that it is not tried for each block.
        block = self.text.read(max(_BLOCK, len(self.rest) - self.at))
        self.is_last = not block
        self.line += self.rest.count("\n", 0, self.at)
        self.rest, self.at = self.rest[self.at :] + block, 0
        return bool(block)

    def _refuse(self, why: str) -> None:
        line = self.line + self.rest.count("\n", 0, self.at)
        raise BrokenFileError(f"it is no JSON: {why}, in the value on line {line}")


def _whole(text: str) -> int | str:
    return int(text) if len(text) < 19 or -(2**63) <= _big(text) < 2**63 else text


def _big(text: str) -> int:
    return int(text) if len(text) < 100 else 2**63


_STRICT = Reader((PLACE, SOURCE_FILE), parse_float=exact_fraction, parse_int=_whole)
