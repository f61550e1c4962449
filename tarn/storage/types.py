"""Which Arrow types Delta keeps as they are, and which casts lose nothing."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from tarn.errors import TarnError

_UNSIGNED = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
}
_WHOLE_DIGITS = {pa.int8(): 3, pa.int16(): 5, pa.int32(): 10, pa.int64(): 19}
_WIDER: dict[pa.DataType, tuple[pa.DataType, ...]] = {
    pa.int8(): (pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()),
    pa.int16(): (pa.int32(), pa.int64(), pa.float32(), pa.float64()),
    pa.int32(): (pa.int64(), pa.float64()),
    pa.float32(): (pa.float64(),),
    pa.date32(): (),
}


def deltable(schema: pa.Schema, where: str) -> pa.Schema:
    """The same columns in types that Delta has; raises TarnError for those it has none for."""
    fields = []
    for field in schema:
        kind = _delta_type(field.type)
        if kind is None:
            raise TarnError(
                f"column {field.name} has type {field.type}, which Delta has no type for",
                where,
                f"cast {field.name} to text or to a number",
            )
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def fit(incoming: pa.Schema, table: pa.Schema, where: str, *, evolve: bool) -> pa.Schema:
    """The schema to write with: the table's types for columns it has, new ones if `evolve`.

    Raises TarnError that names every column which does not fit.
    """
    problems = []
    fields = []
    for field in incoming:
        index = table.get_field_index(field.name)
        if index < 0:
            fields.append(field)
            if not evolve:
                problems.append(f"{field.name} ({field.type}) is not in the table")
            continue
        target = _delta_type(table.field(index).type) or table.field(index).type
        fields.append(pa.field(field.name, target))
        if not loses_nothing(field.type, target):
            problems.append(f"{field.name} would change from {target} to {field.type}")
    if problems:
        raise TarnError(
            "columns do not fit the table: " + "; ".join(problems),
            where,
            "nothing was written; cast the column, or rebuild the table with the new type",
        )
    return pa.schema(fields)


def loses_nothing(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether every value of `source` is also a value of `target`."""
    if source == target or pa.types.is_null(source) or target in _WIDER.get(source, ()):
        return True
    if pa.types.is_decimal(target):
        whole = target.precision - target.scale
        if pa.types.is_decimal(source):
            return bool(source.scale <= target.scale and source.precision - source.scale <= whole)
        return bool(_WHOLE_DIGITS.get(source, 99) <= whole)
    return False


def cast_to(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """The batch with `schema`'s columns in `schema`'s order; a value that would change raises."""
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(column if column.type == field.type else pc.cast(column, field.type))
        except pa.ArrowInvalid as error:
            raise TarnError(f"column {field.name}: {error}", where) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _delta_type(kind: pa.DataType) -> pa.DataType | None:
    """The Arrow type under which Delta keeps values of `kind`; None if it cannot."""
    if kind in _UNSIGNED:
        return _UNSIGNED[kind]
    for recognises, delta in _RENAMED:
        if recognises(kind):
            return delta
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_dictionary(kind):
        return _delta_type(kind.value_type)
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= 38 else None
    if pa.types.is_struct(kind):
        return _delta_struct(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = _delta_type(kind.value_type)
        return item and pa.list_(item)
    if pa.types.is_map(kind):
        key, item = _delta_type(kind.key_type), _delta_type(kind.item_type)
        return pa.map_(key, item) if key and item else None
    kept = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or kind in _KEPT
    return kind if kept else None


def _delta_struct(kind: pa.StructType) -> pa.DataType | None:
    fields = [pa.field(field.name, _delta_type(field.type) or pa.null()) for field in kind]
    return None if any(pa.types.is_null(field.type) for field in fields) else pa.struct(fields)


_KEPT = (pa.float32(), pa.float64(), pa.date32(), pa.string(), pa.binary())
_RENAMED: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_null, pa.string()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_large_binary, pa.binary()),
    (pa.types.is_binary_view, pa.binary()),
    (pa.types.is_fixed_size_binary, pa.binary()),
    (pa.types.is_date64, pa.date32()),
    (pa.types.is_float16, pa.float32()),
)
