"""Changes of many tables, put apart by table on disk: a log may be larger than memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tarn.errors import TarnError
from tarn.ingestion.names import lake_names
from tarn.ingestion.sources.cdc.pgoutput import (
    UNCHANGED,
    Begin,
    Change,
    Column,
    Relation,
    Truncate,
    Values,
    decode,
)

SEQ, LSN, OP, AT, OLD = (f"tarn {name}" for name in ("seq", "lsn", "op", "at", "old"))
"""Columns beside the table's own, by names that none of those can have: order in the log, where
its transaction was committed and when, what happened, and whether the table has other columns by
now."""
UNTOLD = "\0\0"
"""In place of a value that was left unchanged while the row's key changed: what the log or the lake
has under the new key is another row's."""
UPSERT, DELETE, TRUNCATE = "u", "d", "t"
SLICE_ROWS, SLICE_BYTES = 200_000, 64 << 20
"""A table's changes are loaded in slices of about this, of whole transactions."""
_BUFFER_ROWS, _BUFFER_BYTES = 20_000, 16 << 20
_SCHEMA = pa.schema(
    {
        SEQ: pa.int64(),
        LSN: pa.int64(),
        OP: pa.string(),
        AT: pa.timestamp("us"),
        OLD: pa.bool_(),
    }
)


@dataclass
class Slice:
    """Changes of one table, transactions whole and in order."""

    files: list[Path] = field(default_factory=list)
    until: int = 0
    """Position after its last transaction."""
    rows: int = 0
    size: int = 0
    """Bytes of text."""


@dataclass
class Pile:
    """What the log has of one table from a position on."""

    name: str
    columns: tuple[Column, ...]
    """Those that the table has now."""
    keys: Sequence[str]
    """Spelt as in the lake."""
    since: int
    folder: Path
    slices: list[Slice] = field(default_factory=list)
    failure: TarnError | None = None
    _rows: list[tuple[Any, ...]] = field(default_factory=list)
    _names: Sequence[str] = ()
    _positions: Sequence[int] = ()
    _is_old: bool = False
    _unfit: TarnError | None = None
    _size: int = 0
    _files: int = 0

    def describe(self, relation: Relation) -> None:
        """The changes that follow have these columns."""
        self.flush()
        self._unfit = None
        try:
            self._names = lake_names([column.name for column in relation.columns])
            self._positions = [self._names.index(key) for key in self.keys]
        except (TarnError, ValueError) as error:
            gone = TarnError(
                f"the log has no column for a key of {', '.join(self.keys)}", self.name
            )
            self._unfit = error if isinstance(error, TarnError) else gone
        self._is_old = relation.columns != self.columns

    def takes(self, begin: Begin) -> bool:
        """Whether a transaction's changes are wanted. Once one cannot be, none after it is."""
        if begin.lsn < self.since or self.failure:
            return False
        self.failure = self._unfit
        return self.failure is None

    def begin(self, lsn: int) -> None:
        """Go on with a transaction, or start one: a slice may end before it."""
        last = self.slices[-1] if self.slices else None
        is_full = last is not None and (last.rows >= SLICE_ROWS or last.size >= SLICE_BYTES)
        if last is None or (is_full and lsn >= last.until):
            self.flush()
            self.slices.append(Slice())
        self.slices[-1].until = lsn + 1

    def add(self, seq: int, begin: Begin, change: Change) -> None:
        before, after = change.before, change.after
        if after is None:
            assert before is not None
            self._put(seq, begin, DELETE, before)
            return
        moved = before is not None and self._key(before) != self._key(after)
        if before is not None and change.is_before_whole:
            after = [
                old if new == UNCHANGED else new for old, new in zip(before, after, strict=True)
            ]
        if before is not None and moved:
            self._put(seq, begin, DELETE, before)
            after = [UNTOLD if value == UNCHANGED else value for value in after]
        self._put(seq, begin, UPSERT, after)

    def truncate(self, seq: int, begin: Begin) -> None:
        self._put(seq, begin, TRUNCATE, [None] * len(self._names))

    def done(self) -> None:
        """The first slice is in the lake."""
        for file in self.slices.pop(0).files:
            file.unlink()

    def flush(self) -> None:
        if not self._rows:
            return
        columns = list(zip(*self._rows, strict=True))
        texts = [(name, pa.string()) for name in self._names]
        schema = pa.schema([*_SCHEMA, *texts])
        table = pa.Table.from_arrays(
            [pa.array(each, f.type) for each, f in zip(columns, schema, strict=True)], schema=schema
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        file = self.folder / f"{self._files}.parquet"
        pq.write_table(table, file, compression="zstd")
        self.slices[-1].files.append(file)
        self._rows, self._size = [], 0

    def _key(self, values: Values) -> list[str | None]:
        return [values[i] for i in self._positions]

    def _put(self, seq: int, begin: Begin, op: str, values: Values) -> None:
        if op == DELETE:
            kept: list[str | None] = [UNCHANGED] * len(values)
            for i in self._positions:
                kept[i] = values[i]
            values = kept
        self._rows.append((seq, begin.lsn, op, begin.at, self._is_old, *values))
        size = sum(len(value) for value in values if value)
        self._size += size
        self.slices[-1].rows += 1
        self.slices[-1].size += size
        if len(self._rows) >= _BUFFER_ROWS or self._size >= _BUFFER_BYTES:
            self.flush()


def spool(messages: Iterable[bytes], piles: Mapping[tuple[str, str], Pile]) -> datetime | None:
    """Put each change on its table's pile; the time of the first transaction that had any.

    piles are told by schema and table. A transaction that a table has already is left out.
    """
    relations: dict[int, Pile | None] = {}
    begin: Begin | None = None
    first: datetime | None = None
    for seq, message in enumerate(filter(None, map(decode, messages))):
        match message:
            case Begin():
                begin = message
            case Relation():
                relations[message.oid] = pile = piles.get((message.schema, message.name))
                if pile is not None:
                    pile.describe(message)
            case Change() | Truncate():
                assert begin is not None
                for pile in _concerned(message, relations, begin):
                    first = first or begin.at
                    pile.begin(begin.lsn)
                    if isinstance(message, Change):
                        pile.add(seq, begin, message)
                    else:
                        pile.truncate(seq, begin)
    for each in piles.values():
        each.flush()
    return first


def _concerned(
    message: Change | Truncate, relations: Mapping[int, Pile | None], begin: Begin
) -> Iterator[Pile]:
    oids = message.relations if isinstance(message, Truncate) else (message.relation,)
    for oid in oids:
        pile = relations.get(oid)
        if pile is not None and pile.takes(begin):
            yield pile
