"""Messages of protobuf, described by a compiled file or by a registry.

Nothing is compiled here: the registry is asked for its schemas in compiled form.
"""

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka.schema_registry.confluent import meta_pb2
from confluent_kafka.schema_registry.confluent.type import decimal_pb2
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from tarn.errors import TarnError
from tarn.ingestion.streams.formats import UnreadableError, columns
from tarn.ingestion.streams.formats.records import Shape, array_of, text_of
from tarn.ingestion.streams.formats.registry import HEADER, Framed
from tarn.ingestion.streams.formats.registry import Schemas as Registry
from tarn.ingestion.strict_json import clashing

_KIND = "PROTOBUF"
_NAME = "value.proto"
_AT_HAND = (
    descriptor_pb2,
    any_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
    meta_pb2,
    decimal_pb2,
)
"""Files that others build on and need not bring."""
_TYPES = {
    FieldDescriptor.CPPTYPE_INT32: pa.int64(),
    FieldDescriptor.CPPTYPE_INT64: pa.int64(),
    FieldDescriptor.CPPTYPE_UINT32: pa.int64(),
    FieldDescriptor.CPPTYPE_UINT64: pa.decimal128(20, 0),
    FieldDescriptor.CPPTYPE_DOUBLE: pa.float64(),
    FieldDescriptor.CPPTYPE_FLOAT: pa.float32(),
    FieldDescriptor.CPPTYPE_BOOL: pa.bool_(),
    FieldDescriptor.CPPTYPE_ENUM: pa.string(),
}
_WRAPPERS = frozenset(wrappers_pb2.DESCRIPTOR.message_types_by_name)
_DECIMAL = "confluent.type.Decimal"


@dataclass(frozen=True)
class _Field:
    """A column, or an object of some."""

    value: Callable[[Any], Any]
    """Of the message that has the field; None where the field is not set."""
    column: str
    kind: pa.DataType | None = None
    fields: Sequence["_Field"] = ()


class ProtobufShape:
    """Messages of one type."""

    def __init__(self, message: Descriptor) -> None:
        """Raises UnreadableError if its fields are no columns."""
        self.make = GetMessageClass(message)
        self.spelt: dict[str, str] = {}
        self.fields = self._fields(message, (), ())

    def parse(self, value: bytes) -> Any:
        try:
            return self.make.FromString(value)
        except DecodeError as error:
            raise UnreadableError(f"it is not of its schema: {error}") from error

    def columns(self, parsed: Sequence[Any]) -> dict[str, pa.Array]:
        found: dict[str, pa.Array] = {}
        _fill(found, self.fields, parsed)
        return found

    def _fields(
        self, message: Descriptor, above: tuple[str, ...], within: tuple[str, ...]
    ) -> list[_Field]:
        keys = tuple(field.name for field in message.fields)
        if twice := clashing(keys):
            raise UnreadableError(f"field {twice}")
        within = (*within, message.full_name)
        return [
            self._field(field, column, above, within)
            for field, column in zip(message.fields, columns(above, keys), strict=True)
        ]

    def _field(
        self, field: FieldDescriptor, column: str, above: tuple[str, ...], within: tuple[str, ...]
    ) -> _Field:
        inner = field.message_type
        is_object = inner is not None and not field.is_repeated and not _is_known(inner)
        if is_object and inner.full_name not in within:
            fields = self._fields(inner, (*above, field.name), within)
            return _Field(_getter(field), column, fields=fields)
        self.spelt[column] = ".".join((*above, field.name))
        get, plain = _getter(field), _plain(field)
        kind = pa.string() if field.is_repeated or is_object else _arrow(field)
        if pa.types.is_timestamp(kind):
            return _Field(lambda message: _microseconds(get(message)), column, kind)
        if inner is None and not field.is_repeated and field.enum_type is None:
            return _Field(get, column, kind)
        if pa.types.is_string(kind):
            return _Field(lambda message: text_of(plain(get(message))), column, kind)
        return _Field(lambda message: plain(get(message)), column, kind)


class ProtobufFile:
    """One type for all messages."""

    def __init__(self, file: Path, message: str | None, where: str) -> None:
        fix = "make it with protoc --include_imports --descriptor_set_out, and say which message"
        try:
            files = descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes()).file
            found = _pool(files).FindMessageTypeByName(message or "")
            self.shape = ProtobufShape(found)
        except (OSError, DecodeError, KeyError, TypeError, UnreadableError) as error:
            raise TarnError(f"descriptor_file: {error}", where, fix) from error

    def begin(self) -> None:
        """Nothing is asked for."""

    def of(self, value: bytes) -> tuple[Shape, int]:
        return self.shape, 0


class ProtobufRegistry:
    """Schemas that messages name: a file of the registry, and which of its messages."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.framed = Framed(self._file)
        self.shapes: dict[tuple[int, tuple[int, ...]], ProtobufShape] = {}

    def begin(self) -> None:
        self.framed.forget_missing()

    def of(self, value: bytes) -> tuple[Shape, int]:
        pool = self.framed.of(value)
        path, start = _message_path(value)
        known = (id(pool), path)
        if known not in self.shapes:
            self.shapes[known] = ProtobufShape(_message(pool, path))
        return self.shapes[known], start

    def _file(self, number: int) -> DescriptorPool:
        schema = self.registry.schema(number, _KIND)
        others = self.registry.references(schema, _KIND)
        try:
            files = [_file(name, other.schema_str) for name, other in others.items()]
            return _pool([*files, _file(_NAME, schema.schema_str)])
        except (DecodeError, ValueError, KeyError, TypeError) as error:
            raise UnreadableError(f"schema {number}: {error}") from error


def _file(name: str, text: str | None) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto.FromString(
        base64.b64decode(text or "", validate=True)
    )
    file.name = name
    return file


def _pool(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> DescriptorPool:
    """The files' types, and those that they build on."""
    pool = DescriptorPool()
    texts = {module.DESCRIPTOR.name: module.DESCRIPTOR.serialized_pb for module in _AT_HAND}
    brought = {file.name: file.SerializeToString() for file in files}
    added: set[str] = set()

    def add(name: str) -> None:
        text = {**texts, **brought}.get(name)
        if text is not None and name not in added:
            added.add(name)
            for each in descriptor_pb2.FileDescriptorProto.FromString(text).dependency:
                add(each)
            pool.AddSerializedFile(text)

    for name in brought:
        add(name)
    return pool


def _message_path(value: bytes) -> tuple[tuple[int, ...], int]:
    """Which message of its file, by indices from the outside inwards, and where it begins."""
    try:
        count, at = _varint(value, HEADER)
        path = []
        for _ in range(count):
            index, at = _varint(value, at)
            path.append(index)
    except IndexError:
        raise UnreadableError("it ends before it says which message it is") from None
    return tuple(path) or (0,), at


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """A signed number as protobuf writes it, and where the next byte is."""
    found = shift = 0
    while True:
        byte = value[at]
        found |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (found >> 1) ^ -(found & 1), at


def _message(pool: DescriptorPool, path: Sequence[int]) -> Descriptor:
    file = descriptor_pb2.FileDescriptorProto()
    pool.FindFileByName(_NAME).CopyToProto(file)
    names, messages = [file.package] if file.package else [], file.message_type
    for index in path:
        if not 0 <= index < len(messages):
            raise UnreadableError(f"its schema has no message {'.'.join(map(str, path))}")
        names.append(messages[index].name)
        messages = messages[index].nested_type
    return pool.FindMessageTypeByName(".".join(names))


def _is_known(message: Any) -> bool:
    """Whether a type of Google's is a value rather than an object of columns."""
    name: str = message.full_name
    return name.startswith("google.protobuf.") or name == _DECIMAL


def _getter(field: FieldDescriptor) -> Callable[[Any], Any]:
    name = field.name
    if field.is_repeated or not field.has_presence:
        return lambda message: None if message is None else getattr(message, name)
    return lambda message: (
        getattr(message, name) if message is not None and message.HasField(name) else None
    )


def _arrow(field: FieldDescriptor) -> pa.DataType:
    if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        return (
            pa.binary()
            if field.type == FieldDescriptor.TYPE_BYTES
            else _TYPES.get(field.cpp_type, pa.string())
        )
    name = field.message_type.name
    if name in _WRAPPERS:
        return _arrow(field.message_type.fields_by_name["value"])
    return pa.timestamp("us") if name == "Timestamp" else pa.string()


@cache
def _plain(field: FieldDescriptor) -> Callable[[Any], Any]:
    """What makes a field's value one that JSON has, or a decimal; nothing of an empty list."""
    if not field.is_repeated:
        one = _plain_one(field)
        return lambda value: None if value is None else one(value)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        each = _plain_one(field.message_type.fields_by_name["value"])
        return lambda value: {key: each(value[key]) for key in value} if value else None
    item = _plain_one(field)
    return lambda value: [item(each) for each in value] if value else None


def _plain_one(field: FieldDescriptor) -> Callable[[Any], Any]:
    kind, message = field.enum_type, field.message_type
    if kind is not None:
        return lambda value: _enum(kind, value)
    if message is None:
        return lambda value: value
    if message.full_name == _DECIMAL:
        return _decimal
    if not _is_known(message):
        return _object
    if message.name in _WRAPPERS:
        return lambda value: value.value
    return lambda value: MessageToDict(value)


def _enum(kind: EnumDescriptor, value: int) -> str:
    known = kind.values_by_number.get(value)
    return known.name if known else str(value)


def _object(message: Message) -> dict[str, Any]:
    return {field.name: _plain(field)(value) for field, value in message.ListFields()}


def _decimal(value: Any) -> Decimal:
    whole = int.from_bytes(value.value, "big", signed=True)
    return Decimal(whole).scaleb(-value.scale, Context(prec=400))


def _microseconds(moment: Any) -> int | None:
    return None if moment is None else moment.seconds * 1_000_000 + moment.nanos // 1000


def _fill(found: dict[str, pa.Array], fields: Sequence[_Field], messages: Sequence[Any]) -> None:
    for field in fields:
        values = [field.value(message) for message in messages]
        if field.fields:
            _fill(found, field.fields, values)
        elif field.kind is not None:
            found[field.column] = array_of(values, field.kind)
