"""JSON objects read strictly: what readers forgive is told instead.

Repeated keys, keys that would be the same column, NaN, halves of characters, more than `DEEPEST`
levels. How numbers are kept is the caller's.
"""

import json
import math
import re
from collections.abc import Callable, Collection
from decimal import Decimal
from functools import lru_cache
from typing import Any

from tarn.ingestion.names import snake_case

DEEPEST = 50
_LONGEST_EXACT = 15
"""Digits that a double keeps, whatever they are."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class NotRowError(ValueError):
    """A JSON value that cannot be a row as it is."""


class Reader:
    """Reads texts of one object each; `ours` are keys that no object may have."""

    def __init__(
        self,
        ours: Collection[str],
        parse_float: Callable[[str], Any],
        parse_int: Callable[[str], Any] | None = None,
    ) -> None:
        self.ours = frozenset(ours)
        self.decoder = json.JSONDecoder(
            object_pairs_hook=_pairs,
            parse_int=parse_int,
            parse_float=parse_float,
            parse_constant=_constant,
        )

    def row(self, text: str) -> dict[str, Any]:
        """One row; raises ValueError or RecursionError for what is none, or not exactly."""
        found = self.decoder.decode(text)
        if not isinstance(found, dict):
            raise NotRowError("no object")
        if not found:
            raise NotRowError("an object without keys")
        if not self.ours.isdisjoint(found):
            raise NotRowError("a key that is Tarn's own")
        if text.count("{") + text.count("[") > DEEPEST and _depth(found) > DEEPEST:
            raise NotRowError(f"nested more than {DEEPEST} deep")
        if _HALF.search(text):
            _check_whole(found)
        text.encode()
        return found


def exact_fraction(text: str) -> float | str:
    """A double if it is the same number, as far as it is written; else the text."""
    value = float(text)
    if len(text) <= _LONGEST_EXACT and "e" not in text.lower():
        return value
    is_same = math.isfinite(value) and Decimal(repr(value)) == Decimal(text)
    return value if is_same else text


def why(error: BaseException) -> str:
    """What to say of an error that reading a row raised."""
    if isinstance(error, NotRowError):
        return str(error)
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, UnicodeError):
        return "bytes that are not UTF-8"
    return f"no JSON: {getattr(error, 'msg', error)}"


def _check_whole(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise NotRowError("half of a character (a lone surrogate)") from None


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := clashing(tuple([key for key, _ in pairs])):
        raise NotRowError(f"key {twice}")
    return dict(pairs)


@lru_cache(4096)
def clashing(keys: tuple[str, ...]) -> str | None:
    """A key that is no column's name, or the same as another's, and which of both."""
    seen: set[str] = set()
    for key in keys:
        name = snake_case(key) if key.strip() else ""
        if not name:
            return f"{key!r} is no name"
        if name in seen:
            return f"{key!r} is given twice"
        seen.add(name)
    return None


def _constant(text: str) -> Any:
    raise NotRowError(f"{text} is no JSON")
