"""Column types: how YAML names them, how raw tables keep them, and casts that change no value."""

import re
from contextlib import suppress
from decimal import Context, Decimal, InvalidOperation
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tarn.storage.types import deltable

_NAMED: dict[str, pa.DataType] = {
    "text": pa.string(),
    "bigint": pa.int64(),
    "integer": pa.int32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "binary": pa.binary(),
}
_DECIMAL = re.compile(r"decimal\((\d+), ?(\d+)\)")
TYPE_PATTERN = rf"^({'|'.join(_NAMED)}|decimal\(\d+, ?\d+\))$"
_TEXT_FORM = {
    pa.int64(): r"\s*[-+]?\d+\s*",
    pa.int32(): r"\s*[-+]?\d+\s*",
    pa.date32(): r"\s*\d{4}-\d{1,2}-\d{1,2}\s*",
    pa.timestamp("us"): r".*\d.*",
}
"""What text must look like, where DuckDB's own cast would round or cut it, or take infinity."""
_MOST_DIGITS = 38
_DOUBLE_DIGITS = 15
"""Decimal digits that a double keeps, whatever they are."""
_WIDE = Context(prec=400)
_BINARY_NOISE = Decimal("1e-14")
_NOISE = 1e-9
"""Relative error of binary fractions: 0.1 + 0.2 is 0.3, but 0.125 is no amount of two digits."""


def named(name: str) -> pa.DataType:
    """The Arrow type of a type's name in YAML; raises ValueError for an unknown one."""
    if name not in _NAMED and not _DECIMAL.fullmatch(name):
        raise ValueError(f"unknown type {name!r}; known: {', '.join(_NAMED)}, decimal(12,2)")
    if match := _DECIMAL.fullmatch(name):
        precision, scale = int(match[1]), int(match[2])
        if not 0 <= scale <= precision <= 38 or precision < 1:
            raise ValueError(f"{name}: at most 38 digits, scale no larger than they")
        return pa.decimal128(precision, scale)
    return _NAMED[name]


def shown(kind: pa.DataType) -> str:
    """The name of an Arrow type as users write it."""
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # The item's own name says nothing, and differs by who made the list.
        return f"list<{shown(kind.value_type)}>"
    return next((name for name, known in _NAMED.items() if known == kind), str(kind))


def landing(field: pa.Field, where: str) -> pa.DataType:
    """The type under which a raw table keeps a column: an instant as UTC without zone, a time
    of day as text, all else as Delta has it. Raises TarnError where there is none."""
    if pa.types.is_timestamp(field.type):
        return pa.timestamp("us")
    if pa.types.is_time(field.type):
        return pa.string()
    return deltable(pa.schema([field]), where).field(0).type


def exact_cast(column: pa.Array, target: pa.DataType) -> tuple[pa.Array, pa.Array | None]:
    """The column as `target`, and a mask of the values that are not exactly representable in it.

    Those are null in the result. The mask is None when there are none.
    """
    if column.type == target:
        return column, None
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_noisy = pa.types.is_decimal(target) and target.precision > _DOUBLE_DIGITS
    if is_noisy and pa.types.is_floating(column.type):
        # Arrow would make 0.1000000000000000056 of 0.1.
        column = pc.cast(column, pa.string())
    if pa.types.is_string(column.type) and pa.types.is_decimal(target):
        result = _decimals(column, target)
        bad = pc.and_not(pc.is_null(result), pc.is_null(column))
        return result, bad if pc.any(bad).as_py() else None
    try:
        result = _fast(column, target)
        # Of what Arrow casts to decimals it rounds only binary fractions.
        may_round = pa.types.is_decimal(target) and pa.types.is_floating(column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        result = _slow(column, target)
        may_round = pa.types.is_decimal(target) and not pa.types.is_integer(column.type)
    bad = pc.and_not(pc.is_null(result), pc.is_null(column))
    if may_round:
        bad = pc.or_(bad, _rounded(column, result))
    if not pc.any(bad).as_py():
        return result, None
    return pc.if_else(bad, pa.scalar(None, target), result), bad


def _fast(column: pa.Array, target: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(column.type) and column.type.tz and pa.types.is_timestamp(target):
        # Arrow keeps UTC inside; dropping the zone leaves the instant in UTC.
        column = pc.cast(column, pa.timestamp(column.type.unit, "UTC"))
        column = pc.cast(column, pa.timestamp(column.type.unit))
    if pa.types.is_integer(column.type) and pa.types.is_boolean(target):
        return _round_trip(column, target)
    return pc.cast(column, target)


def _slow(column: pa.Array, target: pa.DataType) -> pa.Array:
    """As `_fast`, but a value that cannot be cast is null instead of the end of all."""
    if pa.types.is_binary(column.type) and pa.types.is_string(target):
        return pa.array([_decoded(value.as_py()) for value in column], target)
    fraction = pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
    if not (fraction or pa.types.is_string(column.type) or pa.types.is_decimal(target)):
        return _round_trip(column, target)
    kind = {pa.string(): "varchar", pa.timestamp("us"): "timestamptz"}.get(target, shown(target))
    cast = f"try_cast(value as {kind})"
    if pa.types.is_timestamp(target):
        # A cast to a naive timestamp ignores the offset in the text.
        cast = f"cast({cast} as timestamp)"
    if form := pa.types.is_string(column.type) and _TEXT_FORM.get(target):
        cast = f"case when regexp_full_match(value, '{form}') then {cast} end"
    if fraction and pa.types.is_integer(target):
        cast = f"case when value = trunc(value) then {cast} end"
    with duckdb.connect() as session:
        session.execute("set TimeZone = 'UTC'")
        session.register("incoming", pa.table({"value": column}))
        result = session.execute(f"select {cast} as value from incoming").to_arrow_table()
    return pc.cast(result["value"].combine_chunks(), target)


def _decimals(column: pa.Array, target: pa.DataType) -> pa.Array:
    """Text as decimals, null where it is none or has more digits. Arrow alone drops the digits
    that are too many, on either side of the point, without a word."""
    whole, fraction = target.precision - target.scale, target.scale
    form = f"^[-+]?[0-9]{{0,{whole}}}([.][0-9]{{0,{fraction}}}0{{0,{_MOST_DIGITS - fraction}}})?$"
    fits = pc.and_(
        pc.match_substring_regex(column, form),
        pc.less_equal(pc.binary_length(column), _MOST_DIGITS),
    )
    if pc.all(fits, min_count=0).as_py():
        with suppress(pa.ArrowInvalid):
            return pc.cast(column, target)
    return pa.array([_decimal(value.as_py(), target) for value in column], target)


def _decimal(text: str | None, target: pa.DataType) -> Decimal | None:
    """One number; null if it is not exactly one of the type, but for what a binary fraction is
    off: 0.30000000000000004 is 0.30."""
    try:
        number = Decimal((text or "").strip())
        result = number.quantize(Decimal(1).scaleb(-target.scale), context=_WIDE)
    except InvalidOperation:
        return None
    if result.adjusted() >= target.precision - target.scale and result:
        return None
    digits = len(number.as_tuple().digits)
    is_binary = 15 < digits < 18 and abs(result - number) <= abs(number) * _BINARY_NOISE
    return result if result == number or is_binary else None


def _round_trip(column: pa.Array, target: pa.DataType) -> pa.Array:
    there = pc.cast(column, target, safe=False)
    same = pc.equal(pc.cast(there, column.type, safe=False), column)
    return pc.if_else(pc.fill_null(same, False), there, pa.scalar(None, target))


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _rounded(column: pa.Array, result: pa.Array) -> pa.Array:
    """Where a decimal stands further from the original than binary fractions do anyway."""
    if pa.types.is_decimal(column.type):
        return pc.fill_null(pc.not_equal(result, column), False)
    distance = pc.abs(pc.subtract(pc.cast(result, pa.float64()), column))
    allowed = pc.multiply(pc.max_element_wise(pc.abs(column), 1.0), _NOISE)
    return pc.fill_null(pc.greater(distance, allowed), False)


def plain(value: Any) -> str:
    """A value in a message: short, on one line."""
    text = str(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}…"
