"""Parts of a batch that were read in several ways, put together in the order of the messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tarn.ingestion.declarations.stream import StreamTable
from tarn.ingestion.streams.formats import Decoded, Unreadable, rows
from tarn.ingestion.types import named

Indices: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Types: TypeAlias = Mapping[str, pa.DataType]
"""Of columns, by name."""


@dataclass(frozen=True)
class Piece:
    """Some of the messages as columns."""

    indices: Indices
    columns: Mapping[str, pa.Array]


class Expected:
    """What a declaration says of the columns that come."""

    def __init__(self, spec: StreamTable) -> None:
        self.declared = {name: named(kind) for name, kind in spec.columns.items()}
        self.renamed = spec.contract.renamed

    def types(self, known: pa.Schema | None) -> dict[str, pa.DataType]:
        """Of columns by the names under which they come: as declared, else as the table has."""
        types = {each.name: each.type for each in known or ()} | self.declared
        return types | {new: types[old] for new, old in self.renamed.items() if old in types}

    def together(
        self,
        pieces: Sequence[Piece],
        rejected: Sequence[Unreadable],
        order: Iterable[str],
        spelt: Mapping[str, str],
    ) -> Decoded:
        """All of a batch; `order` has the names of all columns."""
        indices = np.concatenate([np.empty(0, np.int64), *(each.indices for each in pieces)])
        came = {name for piece in pieces for name in piece.columns}
        columns = {name: _column(name, pieces) for name in came}
        if (np.diff(indices) < 0).any():
            by_message = np.argsort(indices, kind="stable")
            indices = indices[by_message]
            columns = {name: each.take(pa.array(by_message)) for name, each in columns.items()}
        for name, kind in self.declared.items():
            others = (new for new, old in self.renamed.items() if old == name)
            if name not in columns and not any(new in columns for new in others):
                columns[name] = pa.nulls(len(indices), kind)
        names = [name for name in dict.fromkeys([*order, *self.declared]) if name in columns]
        return Decoded(
            rows({name: columns[name] for name in names}, len(indices)),
            pa.array(indices),
            sorted(rejected, key=lambda each: each.index),
            {name: spelt[name] for name in names if name in spelt},
        )


def _column(name: str, pieces: Sequence[Piece]) -> pa.Array:
    """A column of all pieces; as text if they do not agree on what it is."""
    arrays = [piece.columns.get(name) for piece in pieces]
    common = _common({array.type for array in arrays if array is not None})
    return pa.concat_arrays(
        [
            pa.nulls(len(piece.indices), common) if array is None else pc.cast(array, common)
            for piece, array in zip(pieces, arrays, strict=True)
        ]
    )


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    if len(kinds) == 1:
        return next(iter(kinds))
    if all(map(pa.types.is_integer, kinds)):
        return pa.int64()
    return pa.float64() if all(map(pa.types.is_floating, kinds)) else pa.string()
