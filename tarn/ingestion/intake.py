"""One table's rows on their way from a source into the lake, as a stream.

Rows are cast and sifted by the contract; those that break it are made safe when the stream ends,
so before the commit of the others. Then, only where it can matter, DuckDB keeps the last
row of each key and drops the rows that the lake holds already.

Rows are asked for from the highest cursor on, itself included: another row may have got the
same cursor after the last load. So the boundary comes twice, and is told by its content.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tarn.errors import TarnError
from tarn.ingestion.contract import Shape, Sieve, Terms, by_chance
from tarn.ingestion.drift import Change, DriftError, Noticed, noticed, record
from tarn.ingestion.landed import LOAD_ID, LOADED_AT, SOURCE_FILE, Desk, Landed
from tarn.ingestion.ledger import Counts, delivered
from tarn.ingestion.masking import causes
from tarn.ingestion.options import EVERYTHING, Options
from tarn.ingestion.quarantine import Quarantine
from tarn.ingestion.shaping import Arrival, Before, shape
from tarn.ingestion.sources import BATCH_ROWS, Extract, ReadAgainError, Rejected
from tarn.ingestion.types import shown
from tarn.progress import Task
from tarn.storage.duck import quoted

_OURS = (TarnError, ReadAgainError)
_POSITION = "_position"
_NTH = "_nth"
_CONTENT = "_content"


@dataclass(frozen=True)
class Load:
    """What all tables of one system's load share."""

    desk: Desk
    load_id: str
    at: datetime
    """When the load began; UTC without zone."""
    folder: Path
    """For what does not outlive the load."""
    system: str
    options: Options = EVERYTHING
    notes_drift: bool = True
    """Whether what comes tells of the source as it is now."""

    @cached_property
    def delivered(self) -> Mapping[str, Mapping[str, str]]:
        """What each table's source delivered last."""
        return delivered(self.desk, self.system)

    @cached_property
    def noticed(self) -> list[Noticed]:
        """The drift of all tables so far."""
        return noticed(self.desk.lake, self.system)

    @property
    def properties(self) -> dict[str, str]:
        """What its commits tell of it."""
        return {"tarn.load_id": self.load_id, "tarn.system": self.system}

    @property
    def transaction(self) -> tuple[str, int]:
        """Put into each commit, it makes two loads of a table at the same time conflict, appends
        too; the later one then looks again at what is new."""
        return "tarn.ingestion", int(self.load_id.partition("-")[0], 16)


class Intake:
    """The rows of one table in one load. `open` may be called again to start over."""

    def __init__(
        self, load: Load, terms: Terms, extract: Extract, landed: Landed, task: Task
    ) -> None:
        self.load, self.terms, self.extract, self.landed = load, terms, extract, landed
        self.task = task
        self.counts = Counts()
        self.failure: Exception | None = None
        self.shape: Shape | None = None
        self.notes: list[str] = []
        """What was done beside adding rows."""
        self.keys: list[pa.RecordBatch] = []
        """Of a span, the keys that were delivered."""
        self.sieve: Sieve | None = None
        self.changes: list[Change] = []
        """Drift that is new."""
        self.renamed: dict[str, str] = {}
        self.quarantine = self._new_quarantine()
        self._passed = self._rows_before = 0
        self._open = ExitStack()

    def open(self) -> pa.RecordBatchReader | None:
        """The rows to write, to be read once to the end; None if the source says nothing at all,
        not even which columns it has."""
        self.close()
        self.counts, self.failure, self._passed = Counts(), None, 0
        self.keys = []
        self.quarantine = self._new_quarantine()
        batches = self._delivered()
        first = next(batches, None)
        if first is None:
            self.quarantine.hold()
            return None
        ahead = [first]
        while not ahead[-1].num_rows and (following := next(batches, None)) is not None:
            ahead.append(following)
        self.shape = shape(self._arrival(ahead), self._before, self.terms)
        self._notice(self.shape.changes)
        # Asked now, as the lake cannot be while rows stream into it.
        self._rows_before = self.landed.rows if self.terms.spec.write == "replace" else 0
        sieve = self._open.enter_context(closing(Sieve(self.shape, self.terms)))
        self.sieve = sieve
        sifted = self._sifted(sieve, chain(ahead, batches))
        reader = pa.RecordBatchReader.from_batches(self._sifted_schema(), sifted)
        if self._needs_position or self._is_compared:
            reader = self._told_apart(reader)
        return _stamped(reader, self.load.load_id, self._at, self._counted(reader))

    def is_current(self) -> bool:
        """Whether the table is still as it was when its rows were compared."""
        before, now = self.landed.kept, self.landed.again().kept
        return (before and before.version()) == (now and now.version())

    def look_again(self) -> None:
        """Compare with the table as it is now from the next `open` on."""
        self.landed = self.landed.again()

    def close(self) -> None:
        self._open.close()
        self._open = ExitStack()

    def settle(self, written: int) -> None:
        """Rows were written: let the others into quarantine, and account for each that was read."""
        self._notice(self._nulled())
        counts, superseded = self.counts, self.extract.superseded()
        counts.read += superseded
        counts.deduplicated += superseded
        counts.accepted = written
        has_moved = bool(written) or self.extract.is_changed
        counts.quarantined = self.quarantine.commit(self.load.transaction, has_moved)
        counts.deduplicated += self.quarantine.count - counts.quarantined
        if counts.read != counts.accepted + counts.quarantined + counts.deduplicated:
            raise TarnError(
                f"rows do not add up: {counts}", self.terms.name, "report this as a bug"
            )

    def refused(self, error: DriftError) -> None:
        """Note what was not let in, of this table and not of the one it hangs on."""
        if not error.is_noted:
            self._notice(error.changes)
            error.is_noted = True

    def _notice(self, changes: Iterable[Change]) -> None:
        table = self.terms.name.partition(".")[2]
        load = self.load
        if not load.notes_drift:
            return
        self.changes += record(load.desk, load.load_id, load.system, table, changes)

    def _nulled(self) -> list[Change]:
        """Columns that have no value any more, which can be no chance."""
        if self.sieve is None or self.landed.table is None:
            return []
        rows = self.sieve.rows
        return [
            Change(
                name, "nulled", shown(field.type), None, "accepted", f"column {name} is all null"
            )
            for name in self.sieve.nulled()
            for field in [self.sieve.shape.schema.field(name)]
            if not by_chance(rows, self.landed.share_of_nulls(name))
        ]

    def _arrival(self, ahead: Sequence[pa.RecordBatch]) -> Arrival:
        extract = self.extract
        lake_name = {new: old for old, new in self.renamed.items()}
        spelt = {lake_name.get(name, name): said for name, said in extract.spelt.items()}
        types = {lake_name.get(name, name): kind for name, kind in extract.types.items()}
        schema, sample = ahead[0].schema, ahead[-1]
        return Arrival(schema, types, sample, spelt, extract.rows, extract.lists, self.renamed)

    @property
    def _before(self) -> Before:
        table = self.terms.name.partition(".")[2]
        seen = [each for each in self.load.noticed if each.table == table]
        return Before(self.landed, self.load.delivered.get(table, {}), seen)

    def _in_lake_names(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Renamed columns by the names they have in the lake; where files of before and after
        come together, each row has one of both."""
        renamed = self.terms.spec.contract.renamed
        self.renamed |= {old: new for new, old in renamed.items() if new in batch.schema.names}
        return in_lake_names(batch, renamed)

    @property
    def _at(self) -> datetime:
        """When these rows came, later than those before them even if the clock was set back:
        models take what is later than the last they have."""
        last = self.landed.loaded_until
        return self.load.at if last is None else max(self.load.at, last)

    @property
    def _needs_position(self) -> bool:
        return bool(self.terms.keys) and not self.extract.is_unique

    @property
    def _is_compared(self) -> bool:
        replaced = self.terms.spec.write == "replace"
        return self.landed.table is not None and bool(self.extract.redelivered) and not replaced

    def _new_quarantine(self) -> Quarantine:
        return Quarantine(self.load.desk, self.terms.name, self.load.load_id, self.load.at)

    def _delivered(self) -> Iterator[pa.RecordBatch]:
        """Batches of the source; a failure in it is remembered, whoever reads the stream."""
        try:
            for item in self.extract.open():
                if isinstance(item, Rejected):
                    self._reject(item)
                    continue
                batches = item.to_batches() if isinstance(item, pa.Table) else [item]
                if isinstance(item, pa.Table) and not batches:
                    batches = [pa.RecordBatch.from_pylist([], schema=item.schema)]
                yield from map(self._in_lake_names, batches)
        except Exception as failure:
            # dlt has wrapped it, and who reads the stream may drop its causes.
            ours = (each for each in causes(failure) if isinstance(each, _OURS))
            self.failure = next(ours, failure)
            if self.failure is failure:
                raise
            raise self.failure from None

    def _reject(self, item: Rejected) -> None:
        self.quarantine.reject(item)
        self.counts.read += 1
        self.task.advance(1)

    def _sifted(self, sieve: Sieve, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        quarantine = self.quarantine
        try:
            for batch in batches:
                sifted = sieve.sift(batch)
                quarantine.add(sifted.bad, sifted.reasons)
                good = self._in_span(sifted.good)
                yield self._positioned(good)
                # What lies beside the span was not asked for.
                self.counts.read += batch.num_rows - sifted.good.num_rows + good.num_rows
                self._passed += good.num_rows
                self.task.advance(batch.num_rows)
            sieve.check_flips()
            quarantine.hold()
        except Exception as failure:
            self.failure = failure
            raise

    def _in_span(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        if self.landed.span is None:
            return rows
        rows = self.landed.span.within(rows)
        self.keys.append(rows.select(self.terms.keys))
        return rows

    def _sifted_schema(self) -> pa.Schema:
        assert self.shape is not None
        schema = self.shape.schema
        return schema.append(pa.field(_POSITION, pa.int64())) if self._needs_position else schema

    def _positioned(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self._needs_position:
            return batch
        positions = pa.arange(self._passed, self._passed + batch.num_rows)
        return batch.append_column(_POSITION, positions)

    def _counted(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in reader:
            rows += batch.num_rows
            yield batch
        self.counts.deduplicated += self._passed - rows
        self._check_shrink(rows)

    def _check_shrink(self, rows: int) -> None:
        """Raise before a replace that loses too much; nothing at all is another matter."""
        before, most = self._rows_before, self.terms.spec.contract.max_shrink
        is_part = self.load.options.limit is not None
        if is_part or not 0 < rows < before * (1 - float(most.removesuffix("%")) / 100):
            return
        lost = f"the source has {rows:,} rows and the table {before:,}, a loss of more than {most}"
        change = Change(None, "shrunk", f"{before} rows", f"{rows} rows", "blocked", lost)
        fix = "nothing was written; if it is meant, raise contract: {max_shrink: …}"
        self.failure = DriftError(lost, self.terms.where("contract"), fix, [change])
        raise self.failure

    def _told_apart(self, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
        connection = self._open.enter_context(self.load.desk.session())
        connection.register("incoming", reader)
        sql = self._sql([name for name in reader.schema.names if name != _POSITION])
        return connection.execute(sql).to_arrow_reader(BATCH_ROWS)

    def _sql(self, columns: Sequence[str]) -> str:
        """SQL over `incoming` that keeps one row a key, and only what the lake lacks."""
        rows = self._last_of_each_key() if self._needs_position else "incoming"
        chosen = ", ".join(quoted(name) for name in columns)
        if not self._is_compared:
            return f"select {chosen} from {rows}"
        names, mark = self._sameness(columns)
        same = [f"incoming.{name} is not distinct from known.{name}" for name in names]
        return f"""
            select {chosen} from (select *, {mark} from {rows}) as incoming
            where not exists (
                select 1 from (select *, {mark} from ({self._in_lake(columns)})) as known
                where {" and ".join(same)}
            )
        """

    def _last_of_each_key(self) -> str:
        keys = ", ".join(quoted(key) for key in self.terms.keys)
        cursor = self.terms.spec.cursor
        order = f"{quoted(cursor)} desc nulls last, " if cursor else ""
        nth = f"row_number() over (partition by {keys} order by {order}{_POSITION} desc)"
        return f"(select * from incoming qualify {nth} = 1)"

    def _sameness(self, columns: Sequence[str]) -> tuple[list[str], str]:
        """Columns by which a row is known to the lake, and SQL of one to compute for it.

        With keys: the keys, and for merges a hash of the row, as the row may have changed.
        Without: all columns, and how often they have occurred before.
        """
        content = [quoted(name) for name in columns if name != SOURCE_FILE]
        if not self.terms.keys:
            every = ", ".join(content)
            return [*content, _NTH], f"row_number() over (partition by {every}) as {_NTH}"
        keys = [quoted(key) for key in self.terms.keys]
        if self.terms.spec.write == "append" and not self.landed.span:
            return keys, f"null as {_CONTENT}"
        return [*keys, _CONTENT], f"hash({', '.join(content)}) as {_CONTENT}"

    def _in_lake(self, columns: Sequence[str]) -> str:
        """The lake's rows that may come again, in this load's types; a column they lack is null."""
        assert self.landed.schema is not None
        assert self.shape is not None
        chosen = [quoted(name) for name in columns]
        for i, name in enumerate(columns):
            if name not in self.landed.schema.names or name in self.shape.widened:
                value = chosen[i] if name in self.shape.widened else "null"
                kind = sql_type(self.shape.schema.field(name).type)
                chosen[i] = f"cast({value} as {kind}) as {chosen[i]}"
        rows = f"({self.landed.select}) where {self.extract.redelivered}"
        return f"select {', '.join(chosen)} from {rows}"


def in_lake_names(batch: pa.RecordBatch, renamed: Mapping[str, str]) -> pa.RecordBatch:
    """The batch with renamed columns (new name to old) by their names in the lake."""
    for new, old in renamed.items():
        if new in batch.schema.names:
            batch = _joined(batch, new, old)
    return batch


def _joined(batch: pa.RecordBatch, new: str, old: str) -> pa.RecordBatch:
    column = batch.column(new)
    if old in batch.schema.names:
        kept = batch.column(old)
        if kept.type != column.type:
            kept, column = pc.cast(kept, pa.string()), pc.cast(column, pa.string())
        column = pc.coalesce(column, kept)
        batch = batch.drop_columns([old])
    at = batch.schema.get_field_index(new)
    return batch.set_column(at, pa.field(old, column.type), column)


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of an Arrow type."""
    with duckdb.connect() as connection:
        connection.register("example", pa.schema([("value", kind)]).empty_table())
        return str(connection.table("example").types[0])


def _stamped(
    reader: pa.RecordBatchReader, load_id: str, at: datetime, batches: Iterator[pa.RecordBatch]
) -> pa.RecordBatchReader:
    """The rows with the load's two columns at the end."""
    instant = pa.scalar(at, pa.timestamp("us"))
    schema = reader.schema.append(pa.field(LOAD_ID, pa.dictionary(pa.int32(), pa.string())))
    schema = schema.append(pa.field(LOADED_AT, instant.type))

    def stamped() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            stamps = [constant(load_id, batch.num_rows), pa.repeat(instant, batch.num_rows)]
            yield pa.RecordBatch.from_arrays([*batch.columns, *stamps], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, stamped())


def constant(text: str, rows: int) -> pa.Array:
    """A column of one text, encoded: as plain text it would fill twice the memory."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), [text])
