"""Rows on their last step: from an intake into their table, in one commit."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import dlt
import pyarrow as pa

from tarn.errors import TarnError
from tarn.ingestion.contract import Shape, Terms
from tarn.ingestion.drift import Change, DriftError
from tarn.ingestion.intake import Intake, Load
from tarn.ingestion.landed import SOURCE_FILE, Landed
from tarn.ingestion.ledger import Counts
from tarn.ingestion.masking import causes
from tarn.ingestion.sources import Extract, ReadAgainError
from tarn.ingestion.types import shown
from tarn.progress import Task
from tarn.storage.duck import quoted
from tarn.storage.predicates import any_of
from tarn.storage.writer import write

log = logging.getLogger(__name__)

_GONE = "_gone"


@dataclass(frozen=True)
class Loaded:
    """What the load of a table, or of one of its children, came to."""

    table: str
    counts: Counts
    notes: tuple[str, ...] = ()
    """What was done beside adding rows, and what the source tells."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Types by name, in YAML's words; empty if nothing was read."""
    changes: tuple[Change, ...] = ()
    """Drift that is new."""
    delivered: Mapping[str, str] = field(default_factory=dict)


def limited(extract: Extract, load: Load) -> Extract:
    """No more rows than were asked for."""
    if load.options.limit is None:
        return extract
    most = load.options.limit

    def first() -> Iterator[Any]:
        left = most
        for item in extract.open():
            if not isinstance(item, pa.RecordBatch | pa.Table):
                yield item
                continue
            yield item.slice(0, left)
            left -= min(left, item.num_rows)
            if not left:
                return

    return replace(extract, open=lambda: dlt.resource(first(), name="limited"))


def load_rows(load: Load, terms: Terms, extract: Extract, landed: Landed, task: Task) -> Loaded:
    intake = Intake(load, terms, extract, landed, task)
    try:
        return done(intake, _read_through(intake))
    finally:
        intake.close()


def _read_through(intake: Intake) -> int:
    """Rows written. A source starts over as often as it finds a better way."""
    while True:
        try:
            return _streamed(intake)
        except ReadAgainError:
            log.debug("%s: read again", intake.terms.name)


def done(intake: Intake, written: int) -> Loaded:
    intake.settle(written)
    table = intake.terms.name.partition(".")[2]
    notes = (*intake.extract.notes, *intake.notes)
    if intake.shape is None:
        return Loaded(table, intake.counts, notes)
    columns = {
        field.name: shown(field.type) for field in intake.shape.schema if field.name != SOURCE_FILE
    }
    changes = tuple(intake.changes)
    return Loaded(table, intake.counts, notes, columns, changes, intake.shape.delivered)


@contextmanager
def telling(intake: Intake) -> Iterator[None]:
    """Raise what the source or the contract said of a failure, not who passed it on."""
    try:
        yield
    except Exception as error:
        failure = intake.failure or error
        ours = (each for each in causes(failure) if isinstance(each, TarnError | ReadAgainError))
        told = next(ours, failure)
        if told is error and not isinstance(told, DriftError):
            raise
    else:
        return
    if isinstance(told, DriftError):
        intake.refused(told)
    raise told


def _streamed(intake: Intake) -> int:
    """Rows go from the source into the table without a stop. Returns how many were written."""
    with telling(intake):
        reader = intake.open()
        if reader is not None and may_be_same(intake):
            if is_same(intake, reader):
                return 0
            reader = intake.open()
        if reader is None:
            return 0
        rows = _Begun(intake, reader)
        return put(intake, rows, rows.is_empty)


class _Begun:
    """Opens an intake's stream for the writer, which asks when it has settled on a version of the
    table: the stream that is open already, unless the table has changed since."""

    def __init__(self, intake: Intake, reader: pa.RecordBatchReader) -> None:
        self.intake, self.schema = intake, reader.schema
        self.batches: Iterator[pa.RecordBatch] | None = (each for each in reader if each.num_rows)
        self.first = next(self.batches, None)

    @property
    def is_empty(self) -> bool:
        return self.first is None

    def __call__(self) -> pa.RecordBatchReader:
        batches, first = self.batches, self.first
        self.batches = self.first = None
        if batches is None or not self.intake.is_current():
            self.intake.look_again()
            reader = self.intake.open()
            assert reader is not None
            return reader
        begun = chain([] if first is None else [first], batches)
        return pa.RecordBatchReader.from_batches(self.schema, begun)


def put(intake: Intake, rows: Callable[[], pa.RecordBatchReader], is_empty: bool) -> int:
    """Commit the rows. Returns how many they were."""
    landed, terms = intake.landed, intake.terms
    assert intake.shape is not None
    if landed.span and landed.table is not None:
        return _put_span(intake, rows, is_empty)
    if is_empty and landed.kept is not None:
        if terms.spec.write == "replace" or landed.is_anew:
            check_may_empty(landed, terms)
        elif not intake.extract.files:
            return 0
    return _write(intake, rows, **_mode(intake))


def _write(intake: Intake, rows: Callable[[], pa.RecordBatchReader], **mode: Any) -> int:
    landed, terms = intake.landed, intake.terms
    assert intake.shape is not None
    if intake.shape.widened:
        widen(landed, intake.shape, intake.load.properties)
    written = write(
        landed.desk.lake,
        landed.name,
        rows,
        partition_by=terms.spec.partition_by,
        evolve=terms.spec.contract.columns == "evolve",
        properties=intake.load.properties,
        transaction=intake.extract.transaction or intake.load.transaction,
        **mode,
    )
    return written.rows


def _put_span(intake: Intake, rows: Callable[[], pa.RecordBatchReader], is_empty: bool) -> int:
    """Let the lake have of the span what the source has of it."""
    if not intake.terms.keys:
        if is_empty:
            _check_span_is_there(intake)
            return 0
        return _write(intake, rows, mode="replace_where", where=intake.landed.predicate)
    gone = 0

    def with_gone() -> pa.RecordBatchReader:
        nonlocal gone
        changed = rows().read_all()
        left = _gone(intake, changed.schema)
        gone = left.num_rows
        if gone and not any(batch.num_rows for batch in intake.keys):
            _check_span_is_there(intake)
        both = [_marked(changed, False), _marked(left, True)]
        return pa.concat_tables(both).to_reader()

    written = _write(intake, with_gone, mode="merge", keys=intake.terms.keys, deleted=_GONE)
    if gone:
        intake.notes.append(f"{gone:,} rows deleted that the source no longer has")
    return written - gone


def _gone(intake: Intake, schema: pa.Schema) -> pa.Table:
    """The span's rows in the lake whose key was not delivered; only the keys have values."""
    keys = list(intake.terms.keys)
    listed = ", ".join(map(quoted, keys))
    known = schema.empty_table().select(keys).schema
    with intake.load.desk.session() as connection:
        connection.register("delivered", pa.Table.from_batches(intake.keys, known))
        sql = f"select {listed} from ({intake.landed.select}) anti join delivered using ({listed})"
        left = connection.execute(sql).to_arrow_table()
    columns = [
        left[field.name].cast(field.type) if field.name in keys else pa.nulls(len(left), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _marked(rows: pa.Table, is_gone: bool) -> pa.Table:
    return rows.append_column(_GONE, pa.repeat(pa.scalar(is_gone), rows.num_rows))


def _check_span_is_there(intake: Intake) -> None:
    """A source that forgets what is old is not to empty the lake."""
    landed = intake.landed
    if landed.rows:
        raise TarnError(
            f"the source has no rows of {landed.span}, the table has {landed.rows:,}",
            intake.terms.where(),
            "nothing was written; check the span and whether the source keeps what is that old",
        )


def _mode(intake: Intake) -> dict[str, Any]:
    """How the rows join those in the lake. What an append must not add again is out already."""
    files = intake.extract.files
    if intake.landed.is_anew:
        return {"mode": "replace"}
    if files:
        return {"mode": "replace_where", "where": any_of([SOURCE_FILE], [[file] for file in files])}
    if intake.terms.spec.write == "merge":
        deleted = intake.extract.deleted
        return {"mode": "merge", "keys": intake.terms.keys, "deleted": deleted}
    return {"mode": intake.terms.spec.write}


def check_may_empty(landed: Landed, terms: Terms) -> None:
    if landed.rows and not terms.spec.allow_empty:
        meant = "say allow_empty: true" if terms.spec.write == "replace" else "delete the table"
        raise TarnError(
            f"the source is empty, the table has {landed.rows:,} rows",
            terms.where(),
            f"nothing was written; if it is meant, {meant}",
        )


def may_be_same(intake: Intake) -> bool:
    """Whether the table could hold already what a source that is read whole holds."""
    is_replaced = intake.terms.spec.write == "replace" and not intake.extract.is_changed
    is_span = bool(intake.landed.span) and not intake.terms.keys
    return (is_replaced or is_span) and intake.landed.table is not None


def is_same(intake: Intake, reader: pa.RecordBatchReader) -> bool:
    """Whether these rows are those of the table; if so, they are counted."""
    landed, load = intake.landed, intake.load
    assert intake.shape is not None
    assert landed.schema is not None
    names = [name for name in intake.shape.schema.names if name != SOURCE_FILE]
    if intake.shape.widened or set(names) != set(landed.schema.names) - {SOURCE_FILE}:
        return False
    chosen = ", ".join(quoted(name) for name in names)
    total = f"select count(*), sum(cast(hash({chosen}) as hugeint)) from"
    with load.desk.session() as connection:
        connection.register("incoming", reader)
        now = connection.execute(f"{total} incoming").fetchone()
        before = connection.execute(f"{total} ({landed.select})").fetchone()
    assert now is not None
    if now != before:
        return False
    intake.counts.deduplicated += now[0]
    return True


def widen(landed: Landed, agreed: Shape, properties: Mapping[str, str]) -> None:
    """Write the table anew with wider types; the same rows, in a commit of its own."""
    assert landed.table is not None
    schema = pa.schema(landed.table.schema().to_arrow())
    wider = {**{field.name: field.type for field in schema}, **agreed.widened}
    everything = replace(landed, span=None).select
    with landed.desk.session() as connection:
        write(
            landed.desk.lake,
            landed.name,
            lambda: connection.execute(everything).to_arrow_reader().cast(pa.schema(wider)),
            mode="replace",
            partition_by=landed.table.metadata().partition_columns,
            properties=properties,
        )
