"""Messages whose schema says which fields they have, and of which types."""

import base64
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tarn.ingestion.declarations.stream import StreamTable
from tarn.ingestion.streams.formats import TOMBSTONE, Decoded, Unreadable, UnreadableError
from tarn.ingestion.streams.formats.pieces import Expected, Piece, Types

EMPTY = "an empty message"


class Shape(Protocol):
    """What messages of one schema are like."""

    @property
    def spelt(self) -> Mapping[str, str]:
        """Names of fields by column, in order."""

    def parse(self, value: bytes) -> Any:
        """A message's fields; raises UnreadableError."""

    def columns(self, parsed: Sequence[Any]) -> dict[str, pa.Array]: ...


class Schemas(Protocol):
    """Tells messages' schemas."""

    def begin(self) -> None:
        """Another batch comes."""

    def of(self, value: bytes) -> tuple[Shape, int]:
        """A message's schema, and where its content begins. Raises UnreadableError."""


class RecordDecoder:
    def __init__(self, spec: StreamTable, schemas: Schemas) -> None:
        self.expected = Expected(spec)
        self.schemas = schemas

    def decode(self, values: Sequence[bytes | None], known: pa.Schema | None) -> Decoded:
        rejected: list[Unreadable] = []
        parsed: dict[Shape, list[tuple[int, Any]]] = defaultdict(list)
        self.schemas.begin()
        for index, value in enumerate(values):
            try:
                shape, found = self._parsed(value)
            except UnreadableError as error:
                rejected.append(Unreadable.of(index, str(error), value, is_text=False))
            else:
                parsed[shape].append((index, found))
        wanted = self.expected.types(known)
        pieces = [_piece(shape, found, wanted) for shape, found in parsed.items()]
        spelt = {name: said for shape in parsed for name, said in shape.spelt.items()}
        order = [*(known.names if known is not None else ()), *spelt]
        return self.expected.together(pieces, rejected, order, spelt)

    def _parsed(self, value: bytes | None) -> tuple[Shape, Any]:
        if value is None:
            raise UnreadableError(TOMBSTONE)
        shape, start = self.schemas.of(value)
        return shape, shape.parse(value[start:] if start else value)


def _piece(shape: Shape, found: Sequence[tuple[int, Any]], wanted: Types) -> Piece:
    columns = shape.columns([each for _, each in found])
    for name, array in columns.items():
        kind = wanted.get(name)
        if kind is not None and pa.types.is_temporal(kind) and pa.types.is_integer(array.type):
            # A number is no time until somebody says since when and in which unit.
            columns[name] = pc.cast(array, pa.string())
    return Piece(np.array([index for index, _ in found], np.int64), columns)


def array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as a column; as text if one is not of the type after all."""
    try:
        if pa.types.is_timestamp(kind):
            return pc.cast(pa.array(values, pa.timestamp("us", "UTC")), kind)
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([text_of(value) for value in values], pa.string())


def text_of(value: Any) -> str | None:
    """A value as text: JSON, but of text and the like only what stands between the quotes."""
    if value is None or isinstance(value, str):
        return value
    written = json_of(value)
    return str(json.loads(written)) if written[0] == '"' else written


def json_of(value: Any) -> str:
    """JSON that bends no number; bytes in base 64, moments as ISO 8601."""
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int | Decimal):
        return str(value)
    if isinstance(value, Mapping):
        pairs = (f"{encode_basestring(str(key))}:{json_of(each)}" for key, each in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(json_of, value))}]"
    if isinstance(value, bytes):
        return encode_basestring(base64.b64encode(value).decode())
    if isinstance(value, datetime | date | time):
        return encode_basestring(value.isoformat())
    assert isinstance(value, str | UUID), type(value)
    return encode_basestring(str(value))
