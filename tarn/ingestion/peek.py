"""The beginning of a source's tables as they would land. Nothing is written or remembered.

A table is read as if the lake had nothing of it yet, but held against the contract with the
columns it has in the lake: so what a load would refuse is refused here.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from dlt.extract import DltSource

from tarn.ingestion.contract import Sieve, Terms
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.engine import quiet_dlt, source_class
from tarn.ingestion.intake import in_lake_names
from tarn.ingestion.landed import PLACE, SOURCE_FILE, Desk, Landed
from tarn.ingestion.objects import ID, unpack
from tarn.ingestion.shaping import Arrival, Before, shape
from tarn.ingestion.sources import Extract, ReadAgainError, Rejected, Source
from tarn.settings import Settings
from tarn.storage.lake import Lake


@dataclass(frozen=True)
class Seen:
    """The first rows of a table."""

    table: str
    rows: pa.Table
    """Those that pass, with the columns and types of the raw table."""
    rejected: tuple[Rejected, ...]
    """Those that would go to quarantine, as delivered."""
    is_all: bool
    """The table has no more rows."""
    notes: tuple[str, ...]
    """How the columns differ from those in the lake."""


@dataclass(frozen=True)
class Peek:
    """One system, opened to be looked at."""

    declared: Declared
    source: Source
    nothing: Desk
    """A lake without tables."""
    lake: Desk | None
    """None before the first load."""

    def table(self, name: str, limit: int) -> list[Seen]:
        """So many rows of a table, and of its children. Raises whatever a load would."""
        raw, spec = f"raw_{self.declared.name}.{name}", self.source.tables[name]
        extract = self.source.extract(name, Landed(self.nothing, raw))
        if extract is None:
            return []
        terms = Terms(raw, spec, spec.primary_key, self.declared.file, ("tables", name))
        if extract.is_objects:
            return list(self._objects(extract, terms, limit))
        try:
            return [self._rows(extract, terms, limit)]
        except ReadAgainError:
            return [self._rows(extract, terms, limit)]

    def _rows(self, extract: Extract, terms: Terms, limit: int) -> Seen:
        return self._sifted(_take(extract.open(), limit), extract.types, terms)

    def _objects(self, extract: Extract, terms: Terms, limit: int) -> Iterator[Seen]:
        """Objects come in pages, of which no more are read than hold the rows."""
        root, spec = terms.name.partition(".")[2], terms.spec
        source = extract.open()
        assert isinstance(source, DltSource)
        source.resources[root].add_limit(limit, count_rows=True)
        with TemporaryDirectory() as folder:
            keyed = bool(spec.primary_key)
            tables, rejected = unpack(source, root, Path(folder), spec.columns, keyed, self.nothing)
            for each in tables:
                is_root = each.name == root
                its = replace(
                    terms,
                    name=terms.name if is_root else f"{terms.name.partition('.')[0]}.{each.name}",
                    spec=spec if is_root else Table(write="append"),
                    keys=(is_root and spec.primary_key) or (ID,),
                    is_objects=True,
                )
                taken = _take(chain(rejected if is_root else [], each.batches()), limit)
                yield self._sifted(taken, each.types, its)

    def _sifted(self, taken: "_Taken", types: Mapping[str, pa.DataType], terms: Terms) -> Seen:
        table = terms.name.partition(".")[2]
        if not taken.batches:
            return Seen(table, pa.table({}), tuple(taken.rejected), True, ())
        renamed = terms.spec.contract.renamed
        batches = [in_lake_names(batch, renamed) for batch in taken.batches]
        arrival = Arrival(batches[0].schema, types, batches[-1])
        before = Before(Landed(self.lake or self.nothing, terms.name), {}, ())
        agreed = shape(arrival, before, terms)
        good, rejected = [], list(taken.rejected)
        with closing(Sieve(agreed, terms)) as sieve:
            for batch in batches:
                sifted = sieve.sift(batch)
                good.append(sifted.good)
                rejected += map(_rejected, sifted.bad.to_pylist(), sifted.reasons)
            if taken.is_all:
                sieve.check_flips()
        rows = pa.Table.from_batches(good, agreed.schema)
        return Seen(
            table,
            rows,
            tuple(rejected),
            taken.is_all,
            tuple(change.told for change in agreed.changes),
        )


@contextmanager
def peek(wanted: Declared, home: Settings) -> Iterator[Peek]:
    """Open a system to look at it. Raises TarnError for what it lacks, before it is connected."""
    quiet_dlt()
    wanted = wanted.resolved(home)
    source = source_class(wanted.system.kind)(wanted, home)
    with TemporaryDirectory() as made, closing(_desk(Lake(f"{made}/lake"), made)) as nothing:
        is_begun = "://" in home.lake or Path(home.lake).is_dir()
        lake = _desk(Lake.open(home), made) if is_begun else None
        try:
            yield Peek(wanted, source, nothing, lake)
        finally:
            if lake:
                lake.close()


@dataclass(frozen=True)
class _Taken:
    """What came first of a source's stream."""

    batches: list[pa.RecordBatch]
    """Perhaps without rows, if only to tell the columns; none if not even they are known."""
    rejected: list[Rejected]
    is_all: bool


def _desk(lake: Lake, folder: str) -> Desk:
    return Desk(lake, Path(folder))


def _take(items: Iterable[Any], limit: int) -> _Taken:
    """So many rows; the stream is left as soon as they are there."""
    batches: list[pa.RecordBatch] = []
    rejected: list[Rejected] = []
    rows = 0
    for item in items:
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        for batch in item.to_batches() if isinstance(item, pa.Table) else [item]:
            batches.append(batch.slice(0, limit - rows))
            rows += batch.num_rows
            if rows >= limit:
                return _Taken(batches, rejected, is_all=False)
    return _Taken(batches, rejected, is_all=True)


def _rejected(row: Mapping[str, Any], reason: str) -> Rejected:
    return Rejected(row, reason, str(row.get(PLACE) or row.get(SOURCE_FILE) or ""))
