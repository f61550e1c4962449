"""Messages of JSON: one object each.

Arrow reads those that are plain all at once; what it would bend, or cannot read, is read one by
one. Both give the same, so that how a message is read never shows:

- Arrow is only asked where each newline stands between `}` and `{`. No text of JSON holds a
  newline, and elsewhere `}{` is no JSON: so no object spans two messages, and as many
  objects as messages are one each.
- Whole numbers beyond 53 bits in a column of fractions, NaN, lists of objects or of fractions:
  Arrow rounds, forgives or fills them in.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from json.encoder import encode_basestring
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from tarn.ingestion.declarations.stream import StreamTable
from tarn.ingestion.streams.formats import (
    TOMBSTONE,
    Decoded,
    Unreadable,
    UnreadableError,
    columns,
)
from tarn.ingestion.streams.formats.pieces import Expected, Piece, Types
from tarn.ingestion.strict_json import DEEPEST, Reader, clashing, why
from tarn.ingestion.types import exact_cast, plain, shown

_WINDOW = 1000
_ATTEMPTS = 8
_MOST_RESTS = 64
_MOST_BYTES = 1 << 30
_LONG, _BRACKETS = 5000, 500
"""A long message with so many brackets may be nested deeper than Arrow's own stack."""
_EXACT = 2.0**53
"""From here on doubles skip whole numbers."""
_DIGITS = 19
_TINY = re.compile(rb"[0-9][eE]-[0-9]{3}")
_ROW = re.compile(r"in row (\d+)$")
_VALUE = re.compile(r"The string '(.*)' is not a valid|: (\S+) requires (?:scale|precision)")
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
Path: TypeAlias = tuple[str, ...]
"""Keys from the message down to a value."""


class _Fraction(str):
    """A number with a point or an exponent, as it is written."""

    __slots__ = ()


class _BentError(Exception):
    """Arrow cannot read these messages exactly; `rows` are at fault, as far as that is known."""

    def __init__(self, rows: Sequence[int] = ()) -> None:
        super().__init__()
        self.rows = rows


@dataclass(frozen=True)
class _Row:
    """One message, value by column: bool, int, _Fraction or text. Nulls are left out."""

    index: int
    values: Mapping[str, Any]


class JsonDecoder:
    """Whole numbers beyond 64 bits, and numbers beyond a double, make a message unreadable where
    their column is not text or decimal."""

    def __init__(self, spec: StreamTable) -> None:
        self.expected = Expected(spec)
        self.arrow = _Arrow()
        self.spelt: dict[str, str] = {}

    def decode(self, values: Sequence[bytes | None], known: pa.Schema | None) -> Decoded:
        kinds = {name: _native(kind) for name, kind in self.expected.types(known).items()}
        pieces, odd = self.arrow.read(values, kinds)
        rejected: list[Unreadable] = []
        parsed = self._parsed(values, odd, rejected)
        found = _most_frequent(pieces, parsed, kinds)
        kinds |= found
        for i, piece in enumerate(pieces):
            pieces[i], bent = _fitting(piece, kinds, values)
            parsed += self._parsed(values, bent, rejected)
        if parsed:
            pieces.append(_converted(parsed, kinds, values, rejected))
        order = _in_order(kinds, known, self._first(values))
        spelt = {**self.arrow.spelt, **self.spelt}
        result = self.expected.together(pieces, rejected, order, spelt)
        came = {name: found[name] for name in result.rows.schema.names if name in found}
        told = {name: kind for name, kind in came.items() if result.rows[name].type != kind}
        return replace(result, types=told)

    def _first(self, values: Sequence[bytes | None]) -> Iterator[str]:
        """The columns of the first message that is a row."""
        for index in range(len(values)):
            for row in self._parsed(values, [index], []):
                yield from row.values
                return

    def _parsed(
        self, values: Sequence[bytes | None], indices: Sequence[int], rejected: list[Unreadable]
    ) -> list[_Row]:
        parsed = []
        for index in indices:
            row: dict[str, Any] = {}
            try:
                _flatten(_object(values[index]), (), row, self.spelt)
            except (ValueError, RecursionError) as error:
                rejected.append(Unreadable.of(index, _told(error), values[index]))
            else:
                parsed.append(_Row(index, row))
        return parsed


class _Arrow:
    """Reads plain messages all at once, and learns from them how to be asked."""

    def __init__(self) -> None:
        self.asked: dict[Path, pa.DataType] = {}
        """Types that are not to be Arrow's own guess."""
        self.spelt: dict[str, str] = {}
        self.resting = self.rests = 0
        """Batches that it will not be asked for, as most messages of one were not plain."""

    def read(self, values: Sequence[bytes | None], kinds: Types) -> tuple[list[Piece], list[int]]:
        """Messages that could be read, and the indices of the others."""
        fit: list[int] = []
        odd: list[int] = []
        for index, value in enumerate(values):
            (fit if not self.resting and _is_plain(value) else odd).append(index)
        self.resting = max(0, self.resting - 1)
        if not fit:
            return [], odd
        try:
            pieces = [self._piece(values, fit, kinds)]
        except _BentError as error:
            if len(error.rows) * 2 > len(fit):
                self.rests = self.resting = min(_MOST_RESTS, 2 * self.rests + 1)
                return [], [*odd, *fit]
        else:
            self.rests = 0
            return pieces, odd
        windows = (fit[start : start + _WINDOW] for start in range(0, len(fit), _WINDOW))
        left = [self._window(values, window, kinds, odd) for window in windows]
        return [piece for piece in left if piece is not None], odd

    def _window(
        self, values: Sequence[bytes | None], indices: list[int], kinds: Types, odd: list[int]
    ) -> Piece | None:
        """What is left of some messages when those at fault are taken out."""
        for _ in range(_ATTEMPTS):
            if not indices:
                break
            try:
                return self._piece(values, indices, kinds)
            except _BentError as error:
                if not error.rows:
                    break
                gone = set(error.rows)
                odd += [indices[row] for row in gone]
                indices = [index for row, index in enumerate(indices) if row not in gone]
        odd += indices
        return None

    def _piece(self, values: Sequence[bytes | None], indices: Sequence[int], kinds: Types) -> Piece:
        """Raises _BentError if Arrow does not read what the messages say."""
        chosen = [(values[index] or b"").strip(_BLANK) for index in indices]
        joined = b"\n".join(chosen)
        if not joined.count(b"\n") == joined.count(b"}\n{") == len(chosen) - 1:
            raise _BentError([row for row, value in enumerate(chosen) if b"\n" in value])
        while True:
            table = _read(joined, chosen, _schema(self.asked))
            leaves = list(_leaves((), table.schema.names, table.columns))
            learnt = {
                path: kind
                for path, name, array in leaves
                if (kind := _to_ask(array.type, kinds.get(name))) not in (None, array.type)
            }
            if not learnt:
                break
            self.asked |= learnt
        if len({name for _, name, _ in leaves}) < len(leaves):
            raise _BentError
        self.spelt |= {name: ".".join(path) for path, name, _ in leaves}
        valued = {name: array for _, name, array in leaves if array.null_count < len(array)}
        unsure = [
            pc.indices_nonzero(_beyond(array))
            for name, array in valued.items()
            if name not in kinds and array.type == pa.float64()
        ]
        if beyond := pa.chunked_array(unsure, pa.uint64()).unique().to_pylist():
            # Arrow takes whole numbers beyond 64 bits for fractions.
            raise _BentError(beyond)
        return Piece(
            np.array(indices, np.int64),
            {
                name: _as_text(array) if _is_list(array.type) else array
                for name, array in valued.items()
            },
        )


def _beyond(doubles: pa.Array) -> pa.Array:
    """Where doubles skip whole numbers, or are none."""
    return pc.invert(pc.fill_null(pc.less(pc.abs(doubles), _EXACT), True))


def _is_plain(value: bytes | None) -> bool:
    """Whether Arrow may be shown the message: something like an object, and not too deep."""
    if not value or b'"' not in value:
        return False
    if value[0] != 123 or value[-1] != 125:
        stripped = value.strip(_BLANK)
        if stripped[:1] != b"{" or stripped[-1:] != b"}":
            return False
    return len(value) < _LONG or value.count(b"[") + value.count(b"{") < _BRACKETS


def _read(joined: bytes, messages: Sequence[bytes], schema: pa.Schema | None) -> pa.Table:
    """A row for each message; raises _BentError."""
    if len(joined) > _MOST_BYTES:
        raise _BentError
    try:
        joined.decode()
        table = pyarrow.json.read_json(
            pa.BufferReader(joined),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(joined) + 1),
            pyarrow.json.ParseOptions(explicit_schema=schema, newlines_in_values=False),
        )
    except UnicodeDecodeError:
        raise _BentError([i for i, each in enumerate(messages) if not _is_utf8(each)]) from None
    except pa.ArrowInvalid as error:
        raise _BentError(_at_fault(str(error), messages)) from error
    if table.num_rows != len(messages):
        raise _BentError
    # Arrow loses nulls at the beginning of the first list of a column (seen in 23.0).
    lost = [pc.indices_nonzero(each.is_valid()) for each in table.columns if not _is_whole(each)]
    if lost:
        raise _BentError(pa.concat_arrays(lost).unique().to_pylist())
    return table


def _is_whole(column: pa.ChunkedArray) -> bool:
    try:
        column.validate()
    except pa.ArrowInvalid:
        return False
    return True


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _at_fault(error: str, messages: Sequence[bytes]) -> list[int]:
    """The messages that Arrow complains of; perhaps a few more, and none if nobody knows."""
    if match := _ROW.search(error):
        return [int(match[1])] if int(match[1]) < len(messages) else []
    if match := _VALUE.search(error):
        value = (match[1] or match[2] or "").encode()
        return [row for row, message in enumerate(messages) if value in message]
    return []


def _schema(asked: Mapping[Path, pa.DataType]) -> pa.Schema | None:
    """The types by path as nested fields."""
    tree: dict[str, Any] = {}
    for path, kind in asked.items():
        at = tree
        for key in path[:-1]:
            below = at.get(key)
            at[key] = at = below if isinstance(below, dict) else {}
        at.setdefault(path[-1], kind)
    return pa.schema(_fields(tree)) if tree else None


def _fields(tree: Mapping[str, Any]) -> list[pa.Field]:
    return [
        pa.field(key, pa.struct(_fields(kind)) if isinstance(kind, dict) else kind)
        for key, kind in tree.items()
    ]


def _leaves(
    above: Path, keys: Sequence[str], arrays: Sequence[Any]
) -> Iterator[tuple[Path, str, pa.Array]]:
    """Path, column and values of all that is no object."""
    if len(above) >= DEEPEST or (keys and clashing(tuple(keys))):
        raise _BentError
    try:
        names = columns(above, tuple(keys))
    except UnreadableError:
        raise _BentError from None
    for key, name, array in zip(keys, names, arrays, strict=True):
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if pa.types.is_struct(array.type):
            inner = [field.name for field in array.type]
            yield from _leaves((*above, key), inner, array.flatten())
        elif _is_list(array.type) and not _is_kept(array.type, len(above)):
            raise _BentError(pc.indices_nonzero(array.is_valid()).to_pylist())
        else:
            yield (*above, key), name, array


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind))


def _is_kept(kind: pa.DataType, depth: int) -> bool:
    """Whether Arrow keeps all that a list says."""
    while _is_list(kind) and depth < DEEPEST:
        kind, depth = kind.value_type, depth + 1
    return kind in _KEPT or pa.types.is_timestamp(kind)


def _to_ask(kind: pa.DataType, wanted: pa.DataType | None) -> pa.DataType | None:
    """As what Arrow is to read a column that it has read as `kind`; None if that is good."""
    if pa.types.is_null(kind):
        return None
    if _is_list(kind):
        inner = _to_ask(kind.value_type, None)
        return pa.list_(inner) if inner else None
    if pa.types.is_timestamp(kind):
        kind = pa.string()
    if wanted is not None and pa.types.is_decimal(wanted) and kind != pa.bool_():
        return wanted
    if wanted == pa.string() and kind in _NUMBERS:
        return wanted
    return kind


def _as_text(lists: pa.Array) -> pa.Array:
    return pa.array([None if each is None else _json(each) for each in lists.to_pylist()], _TEXT)


def _object(value: bytes | None) -> dict[str, Any]:
    if value is None:
        raise UnreadableError(TOMBSTONE)
    text = value.removeprefix(_BOM).decode()
    if not text.strip():
        raise UnreadableError("an empty message")
    return _READER.row(text)


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, UnreadableError) else why(error)


def _flatten(
    found: Mapping[str, Any], above: Path, row: dict[str, Any], spelt: dict[str, str]
) -> None:
    """Put an object's values into a row, by column."""
    for name, (key, value) in zip(columns(above, tuple(found)), found.items(), strict=True):
        if value is None:
            continue
        if isinstance(value, dict):
            _flatten(value, (*above, key), row, spelt)
            continue
        row[name] = _json(value) if isinstance(value, list) else value
        if name not in spelt:
            spelt[name] = ".".join((*above, key))


def _json(value: Any) -> str:
    """JSON in which numbers stand as they stood."""
    if write := _WRITERS.get(type(value)):
        return write(value)
    if isinstance(value, list):
        return f"[{','.join([_json(each) for each in value])}]"
    pairs = [f"{encode_basestring(key)}:{_json(each)}" for key, each in value.items()]
    return f"{{{','.join(pairs)}}}"


def _native(kind: pa.DataType) -> pa.DataType:
    """The type of JSON's values that are those of a column."""
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    return kind if pa.types.is_boolean(kind) or pa.types.is_decimal(kind) else _TEXT


def _in_order(kinds: Types, known: pa.Schema | None, first: Iterator[str]) -> list[str]:
    """The table's columns first, then others as the first message has them."""
    ordered = [name for name in kinds if known is not None and name in known.names]
    return [*ordered, *first, *kinds] if len(ordered) < len(kinds) else ordered


def _most_frequent(pieces: Sequence[Piece], parsed: Sequence[_Row], kinds: Types) -> Types:
    """The type that most values are of, of each column that has none yet."""
    counts: dict[str, Counter[pa.DataType]] = {}
    for row in parsed:
        for name, value in row.values.items():
            if name not in kinds:
                counts.setdefault(name, Counter())[_OF[type(value)]] += 1
    for piece in pieces:
        for name, array in piece.columns.items():
            if name not in kinds:
                often = len(array) - array.null_count
                counts.setdefault(name, Counter())[array.type] += often
    return {name: _winner(often) for name, often in counts.items()}


def _winner(often: Counter[pa.DataType]) -> pa.DataType:
    if often[pa.float64()]:
        # Of fractions some are whole.
        often[pa.float64()] += often.pop(pa.int64(), 0)
    return max(_PREFERRED, key=lambda kind: often[kind])


def _fitting(piece: Piece, kinds: Types, values: Sequence[bytes | None]) -> tuple[Piece, list[int]]:
    """The messages whose values are exact in their columns' types, and the indices of others."""
    found: dict[str, pa.Array] = {}
    bad = np.zeros(len(piece.indices), bool)
    for name, array in piece.columns.items():
        found[name], bent = _fit(array, kinds[name])
        if bent is not None:
            bad |= bent.to_numpy(zero_copy_only=False)
        if array.type == pa.float64():
            bad |= _vanished(array, piece, values)
    if not bad.any():
        return Piece(piece.indices, found), []
    kept = pa.array(~bad)
    left = {name: array.filter(kept) for name, array in found.items()}
    valued = {name: array for name, array in left.items() if array.null_count < len(array)}
    return Piece(piece.indices[~bad], valued), piece.indices[bad].tolist()


def _fit(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.Array | None]:
    """The column as its type or as text, and which values that would bend."""
    was = array.type
    if was == pa.float64():
        if kind not in _NUMBERS:
            return pa.nulls(len(array), kind), array.is_valid()
        bent = _beyond(array)
        if kind == pa.int64():
            bent = pc.or_(bent, pc.fill_null(pc.not_equal(array, pc.trunc(array)), False))
        array = pc.if_else(bent, pa.scalar(None, was), array)
        return pc.cast(array, kind), bent
    if was == pa.int64() and kind == pa.float64():
        double = pc.cast(array, kind, safe=False)
        return double, pc.fill_null(pc.greater_equal(pc.abs(double), _EXACT), False)
    if pa.types.is_decimal(was):
        # Arrow checks the digits of the text, not those that the scale adds.
        most = pa.scalar(Decimal(10**was.precision - 1).scaleb(-was.scale, _WIDE), was)
        return array, pc.fill_null(pc.greater(pc.abs(array), most), False)
    if was in (kind, _TEXT):
        return array, None
    return pc.cast(array, _TEXT), None


def _vanished(
    array: pa.Array, piece: Piece, values: Sequence[bytes | None]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which zeros may be numbers too small for a double."""
    zero = pc.fill_null(pc.equal(array, 0.0), False).to_numpy(zero_copy_only=False)
    result = np.zeros(len(zero), bool)
    for row in np.flatnonzero(zero):
        result[row] = _TINY.search(values[piece.indices[row]] or b"") is not None
    return result


def _converted(
    parsed: Sequence[_Row],
    kinds: Types,
    values: Sequence[bytes | None],
    rejected: list[Unreadable],
) -> Piece:
    """Parsed messages as columns."""
    kept: list[_Row] = []
    for row in parsed:
        try:
            found = {name: _as(name, value, kinds[name]) for name, value in row.values.items()}
        except UnreadableError as error:
            rejected.append(Unreadable.of(row.index, str(error), values[row.index]))
        else:
            kept.append(_Row(row.index, found))
    names = dict.fromkeys(name for row in kept for name in row.values)
    arrays = {name: _array([row.values.get(name) for row in kept], kinds[name]) for name in names}
    return Piece(np.array([row.index for row in kept], np.int64), arrays)


def _as(name: str, value: Any, kind: pa.DataType) -> Any:
    """A value as its column has them, or as text for the contract to judge. Raises
    UnreadableError for a number that no text would keep from being bent."""
    of = type(value)
    if of is str or (of is bool and kind == pa.bool_()):
        return value
    if of is bool:
        return _json(value)
    if kind == pa.int64():
        whole = value if of is int else _whole(value)
        if whole is None:
            return str(value)
        if -(2**63) <= whole < 2**63:
            return whole
    elif kind == pa.float64():
        double = _double(value)
        if double is not None:
            return double
    else:
        return str(value)
    raise UnreadableError(f"{name}: {plain(value)} is not {shown(kind)}")


def _whole(text: str) -> int | None:
    """A number with a point or an exponent that is whole nevertheless."""
    number = Decimal(text)
    if number.adjusted() > _DIGITS:
        return 2**63
    return int(number) if number == number.to_integral_value() else None


def _double(value: Any) -> float | None:
    """The nearest double; None of what it would be far from: infinity, zero, other digits of a
    whole number."""
    try:
        double = float(value)
    except OverflowError:
        return None
    if isinstance(value, int):
        return double if double == value else None
    is_lost = math.isinf(double) or (double == 0 and Decimal(value) != 0)
    return None if is_lost else double


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values of a type, or all as text if some are."""
    if kind != _TEXT and not any(type(value) is str for value in values):
        return pa.array(values, kind)
    texts = pa.array([_shown(value) for value in values], _TEXT)
    if pa.types.is_decimal(kind):
        exact, bad = exact_cast(texts, kind)
        return texts if bad is not None else exact
    return texts


def _shown(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else _json(value)


_WIDE = Context(prec=40)
_READER = Reader((), parse_float=_Fraction)
_TEXT = pa.string()
_NUMBERS = (pa.int64(), pa.float64())
_KEPT = (pa.null(), pa.bool_(), pa.int64(), _TEXT)
_WRITERS: Mapping[type, Callable[[Any], str]] = {
    str: encode_basestring,
    int: str,
    float: repr,
    _Fraction: str,
    bool: lambda value: "true" if value else "false",
    type(None): lambda value: "null",
}
_OF = {bool: pa.bool_(), int: pa.int64(), _Fraction: pa.float64(), str: _TEXT}
_PREFERRED = (pa.float64(), pa.int64(), pa.bool_(), _TEXT)
