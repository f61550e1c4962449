"""PostgreSQL's text form of values, as far as the casts of the contract do not know it."""

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

_TOKEN = re.compile(r'[{},]|"((?:[^"\\]|\\.)*)"|[^{},"]+', re.S)
_ESCAPED = re.compile(r"\\(.)", re.S)
_UTC = r"\+00$"


def delivered(kind: pa.DataType) -> pa.DataType:
    """The type in which `readable` gives a column that lands as a type."""
    if pa.types.is_list(kind) or pa.types.is_binary(kind) or pa.types.is_boolean(kind):
        return kind
    return pa.string()


def readable(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Text as `delivered(kind)`: what remains text is cast by the contract, value by value."""
    if pa.types.is_boolean(kind):
        return pc.starts_with(column, "t")
    if pa.types.is_binary(kind):
        return pa.array([each and bytes.fromhex(each[2:]) for each in _texts(column)], kind)
    if pa.types.is_list(kind):
        return _lists(column, kind)
    if pa.types.is_timestamp(kind):
        return pc.replace_substring_regex(column, _UTC, "")
    return column


def _lists(column: pa.Array, kind: pa.DataType) -> pa.Array:
    lists = [None if each is None else list(elements(each)) for each in _texts(column)]
    nested = pa.array(lists, pa.list_(pa.string()))
    items = readable(nested.values, kind.value_type).cast(kind.value_type)
    result = pa.ListArray.from_arrays(nested.offsets, items, mask=nested.is_null())
    return result.cast(kind)


def elements(text: str) -> Iterator[str | None]:
    """The elements of an array, those of all its dimensions in one row."""
    for match in _TOKEN.finditer(text.partition("=")[2] if text.startswith("[") else text):
        if match[1] is not None:
            yield _ESCAPED.sub(r"\1", match[1])
        elif match[0] not in "{},":
            yield None if match[0] == "NULL" else match[0]


def _texts(column: pa.Array) -> Sequence[str | None]:
    texts: list[str | None] = column.to_pylist()
    return texts
