"""Messages become rows: JSON objects, one by one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.stream import StreamTable
from tarn.ingestion.names import lake_names
from tarn.settings import Settings


@dataclass(frozen=True)
class Unreadable:
    """A message that is no row."""

    index: int
    reason: str
    text: str


@dataclass(frozen=True)
class Decoded:
    """Messages as rows, in their order."""

    rows: pa.RecordBatch
    taken: pa.Array
    """Which messages became rows: their int64 indices."""
    rejected: Sequence[Unreadable] = ()
    spelt: Mapping[str, str] = field(default_factory=dict)
    """Names as the messages spell them, by name in the lake."""


class Decoder:
    def decode(self, values: Sequence[bytes | None], known: pa.Schema | None) -> Decoded:
        """Types that `known` has are read so where the values are of it, and else found."""
        rows: list[dict[str, Any]] = []
        taken: list[int] = []
        rejected: list[Unreadable] = []
        for index, value in enumerate(values):
            try:
                found = json.loads(value or b"")
                if not isinstance(found, dict):
                    raise ValueError("no object")
                rows.append(dict(_flat(found)))
                taken.append(index)
            except ValueError as error:
                text = (value or b"").decode(errors="replace")
                rejected.append(Unreadable(index, f"no JSON: {error}", text))
        said = list(dict.fromkeys(name for row in rows for name in row))
        names = lake_names(said)
        columns = [_column([row.get(name) for row in rows]) for name in said]
        batch = pa.RecordBatch.from_arrays(columns, names=names)
        if not said:
            batch = pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([])))
        spelt = dict(zip(names, said, strict=True))
        return Decoded(batch, pa.array(taken, pa.int64()), rejected, spelt)


def decoder(declared: Declared, table: str, spec: StreamTable, home: Settings) -> Decoder:
    """What reads the messages of a table."""
    return Decoder()


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        if isinstance(each, dict):
            yield from _flat(each, f"{prefix}{name}__")
        else:
            yield prefix + name, json.dumps(each) if isinstance(each, list) else each


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        return pa.array(texts, pa.string())
