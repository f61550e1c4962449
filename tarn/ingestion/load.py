"""Loads one table: from its source, through its contract, into the lake, each row once.

Each table's rows become visible in one Delta commit. Order makes a load that is killed
repeatable: quarantine, then children, then the rows themselves, and last what is to be remembered
of files. Whatever a killed load left is found again by content and completed.

A full refresh looks at the source as if nothing had landed, and puts what comes in place of
everything. A backfill does so for a span of the cursor: rows with a key are merged and those that
the source no longer has are deleted, in one commit; rows without take the place of the span.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.parquet as pq
from dlt.extract import DltResource, DltSource

from tarn.errors import TarnError
from tarn.ingestion.contract import Terms
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Contract, Table
from tarn.ingestion.drift import Change, DriftError
from tarn.ingestion.intake import Intake, Load
from tarn.ingestion.landed import SOURCE_FILE, Landed
from tarn.ingestion.ledger import Counts
from tarn.ingestion.masking import causes
from tarn.ingestion.objects import ID, ROOT_ID, Unpacked, unpack
from tarn.ingestion.quarantine import Quarantine
from tarn.ingestion.sources import BATCH_ROWS, Extract, ReadAgainError, Rejected, Source
from tarn.ingestion.types import shown
from tarn.ingestion.unfinished import begin, finish, is_unfinished
from tarn.progress import Task
from tarn.storage.duck import literal, quoted
from tarn.storage.predicates import any_of
from tarn.storage.writer import write

log = logging.getLogger(__name__)

_GONE = "_gone"
_LISTED = 1000
"""So many rows' children are deleted in one commit."""


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


def load_table(
    load: Load, source: Source, declared: Declared, table: str, task: Task
) -> list[Loaded]:
    """The table and its children. Raises whatever went wrong; nothing is then half done."""
    name = f"raw_{declared.name}.{table}"
    spec = source.tables[table]
    terms = Terms(name, spec, spec.primary_key, declared.file, ("tables", table))
    landed, options = Landed(load.desk, name), load.options
    if options.limit:
        _check_may_limit(landed, terms, options.dry_run)
    if options.backfill:
        return _backfill(load, source, terms, landed, task)
    is_anew = options.full_refresh or (bool(options.limit) and not options.dry_run)
    is_anew = is_anew or is_unfinished(load.desk.lake, name)
    return _load(load, source, terms, replace(landed, is_anew=is_anew), task)


def _backfill(load: Load, source: Source, terms: Terms, landed: Landed, task: Task) -> list[Loaded]:
    """What is new comes first: a row may have left the span since, and must not be missed."""
    if terms.spec.cursor is None:
        raise TarnError(
            "the table has no cursor, so nothing tells which rows a span has",
            terms.where(),
            "declare a cursor, or use --full-refresh",
        )
    assert load.options.backfill is not None
    span = load.options.backfill.of(terms.spec.cursor)
    loaded = _load(load, source, terms, landed, task) if landed.table else []
    return loaded + _load(load, source, terms, replace(landed.again(), span=span), task)


def _load(load: Load, source: Source, terms: Terms, landed: Landed, task: Task) -> list[Loaded]:
    table = terms.name.partition(".")[2]
    extract = source.extract(table, landed.for_source)
    if extract is None:
        return [Loaded(table, Counts())]
    if landed.span:
        # Of the files or the version that were read, only a part is wanted.
        told_apart = "true" if terms.keys or extract.is_objects else None
        extract = replace(
            extract, redelivered=told_apart, files=(), transaction=None, remember=_not
        )
    if load.options.limit:
        begin(load.desk.lake, terms.name)
        extract = replace(extract, remember=_not)
    if extract.is_objects:
        loaded = _load_objects(load, terms, extract, landed, task)
    else:
        loaded = [load_rows(load, terms, _limited(extract, load), landed, task)]
    if any(each.counts.moved for each in loaded) or extract.is_changed:
        extract.remember(load.load_id)
    if landed.is_anew and not load.options.limit:
        finish(load.desk.lake, terms.name)
    return loaded


def _not(load_id: str) -> None:
    """Remember nothing: the next load is to read it again."""


def _limited(extract: Extract, load: Load) -> Extract:
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


def _check_may_limit(landed: Landed, terms: Terms, dry_run: bool) -> None:
    """Rows beyond the limit come with the next load, which reads everything and replaces it. A
    table that is whole is not to be cut down to that."""
    if landed.kept is None or dry_run or is_unfinished(landed.desk.lake, terms.name):
        return
    raise TarnError(
        f"--limit is for a first try, and the table has {landed.rows:,} rows already",
        terms.where(),
        "add --dry-run to look at a few rows, or leave --limit out",
    )


def load_rows(load: Load, terms: Terms, extract: Extract, landed: Landed, task: Task) -> Loaded:
    intake = Intake(load, terms, extract, landed, task)
    try:
        return _done(intake, _read_through(intake))
    finally:
        intake.close()


def _read_through(intake: Intake) -> int:
    """Rows written. A source starts over as often as it finds a better way."""
    while True:
        try:
            return _streamed(intake)
        except ReadAgainError:
            log.debug("%s: read again", intake.terms.name)


def _done(intake: Intake, written: int) -> Loaded:
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
def _telling(intake: Intake) -> Iterator[None]:
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
    with _telling(intake):
        reader = intake.open()
        if reader is not None and _may_be_same(intake):
            if _is_same(intake, reader):
                return 0
            reader = intake.open()
        if reader is None:
            return 0
        rows = _Begun(intake, reader)
        return _put(intake, rows, rows.is_empty)


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


def _put(intake: Intake, rows: Callable[[], pa.RecordBatchReader], is_empty: bool) -> int:
    """Commit the rows. Returns how many they were."""
    landed, terms = intake.landed, intake.terms
    assert intake.shape is not None
    if landed.span and landed.table is not None:
        return _put_span(intake, rows, is_empty)
    if is_empty and landed.kept is not None:
        if terms.spec.write == "replace" or landed.is_anew:
            _check_may_empty(landed, terms)
        elif not intake.extract.files:
            return 0
    return _write(intake, rows, **_mode(intake))


def _write(intake: Intake, rows: Callable[[], pa.RecordBatchReader], **mode: Any) -> int:
    landed, terms = intake.landed, intake.terms
    assert intake.shape is not None
    if intake.shape.widened:
        _widen(intake)
    written = write(
        landed.desk.lake,
        landed.name,
        rows,
        partition_by=terms.spec.partition_by,
        evolve=terms.spec.contract.columns == "evolve",
        properties=_properties(intake.load, terms),
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
        return {"mode": "merge", "keys": intake.terms.keys}
    return {"mode": intake.terms.spec.write}


def _check_may_empty(landed: Landed, terms: Terms) -> None:
    if landed.rows and not terms.spec.allow_empty:
        meant = "say allow_empty: true" if terms.spec.write == "replace" else "delete the table"
        raise TarnError(
            f"the source is empty, the table has {landed.rows:,} rows",
            terms.where(),
            f"nothing was written; if it is meant, {meant}",
        )


def _may_be_same(intake: Intake) -> bool:
    """Whether the table could hold already what a source that is read whole holds."""
    is_replaced = intake.terms.spec.write == "replace" and not intake.extract.is_changed
    is_span = bool(intake.landed.span) and not intake.terms.keys
    return (is_replaced or is_span) and intake.landed.table is not None


def _is_same(intake: Intake, reader: pa.RecordBatchReader) -> bool:
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


def _widen(intake: Intake) -> None:
    """Write the table anew with wider types; the same rows, in a commit of its own."""
    landed = intake.landed
    assert landed.table is not None
    assert intake.shape is not None
    schema = pa.schema(landed.table.schema().to_arrow())
    wider = {**{field.name: field.type for field in schema}, **intake.shape.widened}
    everything = replace(landed, span=None).select
    with landed.desk.session() as connection:
        write(
            landed.desk.lake,
            landed.name,
            lambda: connection.execute(everything).to_arrow_reader().cast(pa.schema(wider)),
            mode="replace",
            partition_by=landed.table.metadata().partition_columns,
            properties=_properties(intake.load, intake.terms),
        )


def _properties(load: Load, terms: Terms) -> dict[str, str]:
    system = terms.name.partition(".")[0].removeprefix("raw_")
    return {"tarn.load_id": load.load_id, "tarn.system": system}


def _load_objects(
    load: Load, terms: Terms, extract: Extract, landed: Landed, task: Task
) -> list[Loaded]:
    """Objects: their rows wait on disk until their children are in the lake."""
    spec = terms.spec
    table = terms.name.partition(".")[2]
    # A backfill reads a table twice.
    folder = Path(mkdtemp(prefix=f"{table}.", dir=load.folder))
    source = extract.open()
    assert isinstance(source, DltSource)
    if load.options.limit:
        source.resources[table].add_limit(load.options.limit, count_rows=True)
    tables, rejected = unpack(
        source, table, folder, spec.columns, bool(spec.primary_key), load.desk
    )
    if not tables and not rejected:
        return [_nothing_came(load, terms, landed, extract)]
    if not tables:
        only = replace(extract, open=lambda: dlt.resource(rejected, name=table))
        return [load_rows(load, terms, only, landed, task)]
    root, *children = tables
    keyed = replace(terms, keys=spec.primary_key or (ID,), is_objects=True)
    rows = replace(
        extract,
        open=_resource(root, rejected),
        types=root.types,
        spelt=root.spelt,
        rows=root.rows(),
        lists=[child.name.removeprefix(f"{table}__") for child in children],
        is_objects=False,
    )
    intake = Intake(load, keyed, _limited(rows, load), landed, task)
    try:
        with _telling(intake):
            loaded = _with_children(intake, children, folder)
    finally:
        intake.close()
    _drop_orphans(load, terms)
    return loaded


def _nothing_came(load: Load, terms: Terms, landed: Landed, extract: Extract) -> Loaded:
    """No object at all, so not even columns are known."""
    is_replaced = terms.spec.write == "replace" or landed.is_anew
    if is_replaced and landed.kept is not None and landed.rows:
        _check_may_empty(landed, terms)
        empty = pa.schema(landed.kept.schema().to_arrow()).empty_table()
        properties = _properties(load, terms)
        write(load.desk.lake, landed.name, empty, mode="replace", properties=properties)
    return Loaded(terms.name.partition(".")[2], Counts(), tuple(extract.notes))


def _with_children(intake: Intake, children: Sequence[Unpacked], folder: Path) -> list[Loaded]:
    reader = intake.open()
    assert reader is not None
    waiting = folder / "waiting.parquet"
    with pq.ParquetWriter(waiting, reader.schema, compression="zstd") as spool:
        for batch in reader:
            spool.write_batch(batch)
    if _may_be_same(intake) and _is_same(intake, _read(waiting)):
        return [_done(intake, 0)]
    if children and intake.landed.is_anew:
        begin(intake.load.desk.lake, intake.terms.name)
    loaded = [_load_child(intake, child, waiting) for child in children]
    is_empty = not pq.read_metadata(waiting).num_rows
    return [_done(intake, _put(intake, lambda: _read(waiting), is_empty)), *loaded]


def _read(file: Path) -> pa.RecordBatchReader:
    opened = pq.ParquetFile(file)
    return pa.RecordBatchReader.from_batches(opened.schema_arrow, opened.iter_batches(BATCH_ROWS))


def _resource(
    table: Unpacked, rejected: Sequence[Rejected] = (), condition: str = "true"
) -> Callable[[], DltResource]:
    return lambda: dlt.resource(chain(rejected, table.batches(condition)), name=table.name)


def child_spec(contract: Contract) -> Table:
    """How the children of rows with this contract are loaded."""
    told = contract.model_copy(update={"required": (), "renamed": {}})
    return Table(write="append").model_copy(update={"contract": told})


def _load_child(parent: Intake, child: Unpacked, waiting: Path) -> Loaded:
    """The children of the rows that wait. Those of rows in quarantine go there too; those of rows
    that the lake has are there as well."""
    load, terms = parent.load, parent.terms
    spec = child_spec(terms.spec.contract)
    name = f"{terms.name.partition('.')[0]}.{child.name}"
    child_terms = replace(terms, name=name, spec=spec, keys=(ID,))
    wanted = f"{ROOT_ID} in (select {ID} from read_parquet({literal(str(waiting))}))"
    rejected = f"{ROOT_ID} in ({', '.join(map(literal, parent.quarantine.values(ID))) or 'null'})"
    extract = Extract(_resource(child, condition=wanted), types=child.types, rows=child.rows())
    landed = Landed(load.desk, name, is_anew=parent.landed.is_anew)
    loaded = load_rows(load, child_terms, extract, landed, parent.task)
    quarantine = Quarantine(load.desk, name, load.load_id, load.at)
    for batch in child.batches(rejected):
        reason = f"its row of {terms.name} is in quarantine"
        quarantine.add(batch, [reason] * batch.num_rows)
    counts = loaded.counts
    quarantine.hold()
    fresh = quarantine.commit(load.transaction, bool(counts.accepted))
    counts.quarantined += fresh
    counts.deduplicated += child.rows() - counts.read - fresh
    counts.read = child.rows()
    return loaded


def _drop_orphans(load: Load, terms: Terms) -> None:
    """Delete children whose row has changed or gone. Looked for each time: a load may have been
    killed between its last commit and this."""
    for name in load.desk.lake.names():
        if not name.startswith(f"{terms.name}__"):
            continue
        child, root = (Landed(load.desk, each) for each in (name, terms.name))
        if child.schema is None or ROOT_ID not in child.schema.names:
            continue
        known = f"select {ID} from ({root.select})" if root.table else f"select '' as {ID}"
        sql = f"select distinct {ROOT_ID} from ({child.select}) where {ROOT_ID} not in ({known})"
        with load.desk.session() as connection:
            orphans = connection.execute(sql).fetchall()
        if orphans:
            _delete(load, terms, child, orphans)


def _delete(load: Load, terms: Terms, child: Landed, roots: Sequence[tuple[str]]) -> None:
    assert child.table is not None
    empty = pa.schema(child.table.schema().to_arrow()).empty_table()
    properties = _properties(load, terms)
    for start in range(0, len(roots), _LISTED):
        where = any_of([ROOT_ID], roots[start : start + _LISTED])
        write(
            child.desk.lake,
            child.name,
            empty,
            mode="replace_where",
            where=where,
            properties=properties,
        )
