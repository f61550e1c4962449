"""Messages of Avro, with one schema for all in a file, or each naming its own in a registry.

Each is read by the schema that it was written with. So what a table's columns become when a
schema changes is the contract's to say, as with any other drift.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
from fastavro.schema import SchemaParseException, UnknownType

from tarn.errors import TarnError
from tarn.ingestion.avro_types import ARROW, LOGICAL
from tarn.ingestion.streams.formats import UnreadableError, columns
from tarn.ingestion.streams.formats.records import EMPTY, Shape, array_of, text_of
from tarn.ingestion.streams.formats.registry import HEADER, Framed
from tarn.ingestion.streams.formats.registry import Schemas as Registry
from tarn.ingestion.strict_json import clashing

_KIND = "AVRO"
_TEXT = pa.string()
_MOST_DIGITS = 38


@dataclass(frozen=True)
class _Field:
    key: str
    column: str
    kind: pa.DataType | None = None
    """None of what becomes text as JSON."""
    fields: Sequence["_Field"] = ()
    """Of a record within."""


class AvroShape:
    """Messages written with one schema."""

    def __init__(self, schema: Any, others: Mapping[str, Any]) -> None:
        """others: definitions of named types by full name. Raises UnreadableError if the schema's
        values are no rows."""
        self.schema, self.spelt = schema, dict[str, str]()
        self.types = dict(others)
        if not isinstance(schema, dict) or schema.get("type") != "record":
            raise UnreadableError("its schema is no record")
        self.fields = self._fields(schema, (), ())

    def parse(self, value: bytes) -> Any:
        read = BytesIO(value)
        try:
            found = fastavro.schemaless_reader(read, self.schema, None)
        except Exception as error:
            # Bytes of another schema fail in whichever way they like.
            raise UnreadableError(
                f"it is not of its schema: {error}" if value else EMPTY
            ) from error
        if left := len(value) - read.tell():
            raise UnreadableError(f"it goes on for {left} bytes after its end")
        return found

    def columns(self, parsed: Sequence[Any]) -> dict[str, pa.Array]:
        found: dict[str, pa.Array] = {}
        _fill(found, self.fields, parsed)
        return found

    def _fields(self, record: Any, above: tuple[str, ...], within: tuple[str, ...]) -> list[_Field]:
        keys = tuple(field["name"] for field in record["fields"])
        if twice := clashing(keys):
            raise UnreadableError(f"field {twice}")
        within = (*within, record["name"])
        return [
            self._field(field, column, above, within)
            for field, column in zip(record["fields"], columns(above, keys), strict=True)
        ]

    def _field(
        self, field: Any, column: str, above: tuple[str, ...], within: tuple[str, ...]
    ) -> _Field:
        key, told = field["name"], self._only(field["type"])
        if isinstance(told, dict) and told["type"] == "record" and told["name"] not in within:
            return _Field(key, column, fields=self._fields(told, (*above, key), within))
        self.spelt[column] = ".".join((*above, key))
        return _Field(key, column, _arrow(told))

    def _only(self, told: Any) -> Any:
        """The type of a field that may be null, by its definition."""
        if isinstance(told, list):
            kinds = [kind for kind in told if kind != "null"]
            return self._only(kinds[0]) if len(kinds) == 1 else None
        return self.types.get(told, told) if isinstance(told, str) else told


class AvroFile:
    """One schema for all messages."""

    def __init__(self, file: Path, where: str) -> None:
        try:
            told = json.loads(file.read_text())
            types: dict[str, Any] = {}
            self.shape = AvroShape(fastavro.parse_schema(told, types), types)
        except (OSError, ValueError, SchemaParseException, UnknownType) as error:
            fix = "name a file (.avsc) with the schema of a record"
            raise TarnError(f"schema_file: {error}", where, fix) from error

    def begin(self) -> None:
        """Nothing is asked for."""

    def of(self, value: bytes) -> tuple[Shape, int]:
        return self.shape, 0


class AvroRegistry:
    """Schemas that messages name."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.framed = Framed(self._shape)

    def begin(self) -> None:
        self.framed.forget_missing()

    def of(self, value: bytes) -> tuple[Shape, int]:
        return self.framed.of(value), HEADER

    def _shape(self, number: int) -> AvroShape:
        schema = self.registry.schema(number, _KIND)
        types: dict[str, Any] = {}
        try:
            for other in self.registry.references(schema, _KIND).values():
                fastavro.parse_schema(json.loads(other.schema_str or ""), types)
            parsed = fastavro.parse_schema(json.loads(schema.schema_str or ""), types)
            return AvroShape(parsed, types)
        except (ValueError, SchemaParseException, UnknownType) as error:
            raise UnreadableError(f"schema {number}: {error}") from error


def _arrow(told: Any) -> pa.DataType | None:
    """The column's type; None if its values become text as JSON."""
    if not isinstance(told, dict):
        return ARROW.get(told)
    logical = told.get("logicalType")
    if logical == "decimal":
        if told["precision"] > _MOST_DIGITS:
            return None
        return pa.decimal128(told["precision"], told.get("scale", 0))
    kind = LOGICAL.get(str(logical), ARROW.get(told["type"]))
    if logical == "uuid" or (kind is not None and pa.types.is_time(kind)):
        return None
    return pa.timestamp("us") if kind is not None and pa.types.is_timestamp(kind) else kind


def _fill(found: dict[str, pa.Array], fields: Sequence[_Field], records: Sequence[Any]) -> None:
    for field in fields:
        key = field.key
        values = [None if record is None else record[key] for record in records]
        if field.fields:
            _fill(found, field.fields, values)
        elif field.kind is None:
            found[field.column] = pa.array(map(text_of, values), _TEXT)
        else:
            found[field.column] = array_of(values, field.kind)
