"""Loads one table: from its source, through its contract, into the lake, each row once.

Each table's rows become visible in one Delta commit. Order makes a load that is killed
repeatable: quarantine, then children, then the rows themselves, and last what is to be remembered
of files. Whatever a killed load left is found again by content and completed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.parquet as pq
from dlt.extract import DltResource, DltSource

from tarn.errors import TarnError
from tarn.ingestion.contract import Terms
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.intake import Intake, Load
from tarn.ingestion.landed import SOURCE_FILE, Landed
from tarn.ingestion.ledger import Counts
from tarn.ingestion.masking import causes
from tarn.ingestion.objects import ID, ROOT_ID, Unpacked, unpack
from tarn.ingestion.quarantine import Quarantine
from tarn.ingestion.sources import BATCH_ROWS, Extract, ReadAgainError, Source
from tarn.progress import Task
from tarn.storage.duck import literal, quoted
from tarn.storage.predicates import any_of
from tarn.storage.writer import write

_LISTED = 1000
"""So many rows' children are deleted in one commit."""


@dataclass(frozen=True)
class Loaded:
    """What the load of a table, or of one of its children, came to."""

    table: str
    counts: Counts
    notes: tuple[str, ...] = ()


def load_table(
    load: Load, source: Source, declared: Declared, table: str, task: Task
) -> list[Loaded]:
    """The table and its children. Raises whatever went wrong; nothing is then half done."""
    parts, is_more = [[Loaded(table, Counts())]], True
    while is_more:
        loaded, is_more = _load_part(load, source, declared, table, task)
        parts.append(loaded)
    tables = dict.fromkeys(each.table for loaded in parts for each in loaded)
    return [_together([e for loaded in parts for e in loaded if e.table == t]) for t in tables]


def _together(parts: Sequence[Loaded]) -> Loaded:
    """What was loaded of one table, part by part."""
    counts = Counts()
    for name, rows in ((n, r) for part in parts for n, r in vars(part.counts).items()):
        setattr(counts, name, getattr(counts, name) + rows)
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return replace(parts[-1], counts=counts, notes=tuple(notes))


def _load_part(
    load: Load, source: Source, declared: Declared, table: str, task: Task
) -> tuple[list[Loaded], bool]:
    """What the source gives at a time, and whether there is more."""
    name = f"raw_{declared.name}.{table}"
    landed = Landed(load.desk, name)
    extract = source.extract(table, landed)
    if extract is None:
        return [], False
    spec = source.tables[table]
    terms = Terms(name, spec, spec.primary_key, declared.file, ("tables", table))
    if extract.is_objects:
        loaded = _load_objects(load, terms, extract, landed, task)
    else:
        loaded = [_load_rows(load, terms, extract, landed, task)]
    if any(each.counts.moved for each in loaded) or extract.is_changed:
        extract.remember(load.load_id)
    return loaded, extract.is_more


def _load_rows(load: Load, terms: Terms, extract: Extract, landed: Landed, task: Task) -> Loaded:
    intake = Intake(load, terms, extract, landed, task)
    try:
        written = _streamed(intake)
    except ReadAgainError:
        written = _streamed(intake)
    finally:
        intake.close()
    return _done(intake, written)


def _done(intake: Intake, written: int) -> Loaded:
    intake.settle(written)
    table = intake.terms.name.partition(".")[2]
    notes = intake.shape.notes if intake.shape else ()
    return Loaded(table, intake.counts, (*notes, *intake.extract.notes))


@contextmanager
def _telling(intake: Intake) -> Iterator[None]:
    """Raise what the source or the contract said of a failure, not who passed it on."""
    try:
        yield
    except Exception as error:
        failure = intake.failure or error
        ours = (each for each in causes(failure) if isinstance(each, TarnError | ReadAgainError))
        told = next(ours, failure)
        if told is error:
            raise
    else:
        return
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
    if is_empty and landed.table is not None:
        if terms.spec.write == "replace":
            _check_may_empty(landed, terms)
        elif not intake.extract.files:
            return 0
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
        **_mode(intake),
    )
    return written.rows


def _mode(intake: Intake) -> dict[str, Any]:
    """How the rows join those in the lake. What an append must not add again is out already."""
    files = intake.extract.files
    if files:
        return {"mode": "replace_where", "where": any_of([SOURCE_FILE], [[file] for file in files])}
    if intake.terms.spec.write == "merge":
        deleted = intake.extract.deleted
        return {"mode": "merge", "keys": intake.terms.keys, "deleted": deleted}
    return {"mode": intake.terms.spec.write}


def _check_may_empty(landed: Landed, terms: Terms) -> None:
    if landed.rows and not terms.spec.allow_empty:
        raise TarnError(
            f"the source is empty, the table has {landed.rows:,} rows",
            terms.where(),
            "nothing was written; if it is meant, say allow_empty: true",
        )


def _may_be_same(intake: Intake) -> bool:
    """Whether the table could hold already what a source that is read whole holds."""
    is_replaced = intake.terms.spec.write == "replace" and not intake.extract.is_changed
    return is_replaced and intake.landed.table is not None


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
    if now != before or not now[0]:
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
    with landed.desk.session() as connection:
        write(
            landed.desk.lake,
            landed.name,
            lambda: connection.execute(landed.select).to_arrow_reader().cast(pa.schema(wider)),
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
    folder = load.folder / table
    folder.mkdir(parents=True)
    source = extract.open()
    assert isinstance(source, DltSource)
    tables = unpack(source, table, folder, spec.columns, bool(spec.primary_key), load.desk)
    if not tables:
        return [_nothing_came(load, terms, landed)]
    root, *children = tables
    keyed = replace(terms, keys=spec.primary_key or (ID,), is_objects=True)
    rows = replace(extract, open=_resource(root), types=root.types, is_objects=False)
    intake = Intake(load, keyed, rows, landed, task)
    try:
        with _telling(intake):
            loaded = _with_children(intake, children, folder)
    finally:
        intake.close()
    _drop_orphans(load, terms)
    return loaded


def _nothing_came(load: Load, terms: Terms, landed: Landed) -> Loaded:
    """No object at all, so not even columns are known."""
    if terms.spec.write == "replace" and landed.table is not None and landed.rows:
        _check_may_empty(landed, terms)
        empty = pa.schema(landed.table.schema().to_arrow()).empty_table()
        properties = _properties(load, terms)
        write(load.desk.lake, landed.name, empty, mode="replace", properties=properties)
    return Loaded(terms.name.partition(".")[2], Counts())


def _with_children(intake: Intake, children: Sequence[Unpacked], folder: Path) -> list[Loaded]:
    reader = intake.open()
    assert reader is not None
    waiting = folder / "waiting.parquet"
    with pq.ParquetWriter(waiting, reader.schema, compression="zstd") as spool:
        for batch in reader:
            spool.write_batch(batch)
    if _may_be_same(intake) and _is_same(intake, _read(waiting)):
        return [_done(intake, 0)]
    loaded = [_load_child(intake, child, waiting) for child in children]
    is_empty = not pq.read_metadata(waiting).num_rows
    return [_done(intake, _put(intake, lambda: _read(waiting), is_empty)), *loaded]


def _read(file: Path) -> pa.RecordBatchReader:
    opened = pq.ParquetFile(file)
    return pa.RecordBatchReader.from_batches(opened.schema_arrow, opened.iter_batches(BATCH_ROWS))


def _resource(table: Unpacked, condition: str = "true") -> Callable[[], DltResource]:
    return lambda: dlt.resource(table.batches(condition), name=table.name)


def _load_child(parent: Intake, child: Unpacked, waiting: Path) -> Loaded:
    """The children of the rows that wait. Those of rows in quarantine go there too; those of rows
    that the lake has are there as well."""
    load, terms = parent.load, parent.terms
    contract = terms.spec.contract.model_copy(update={"required": ()})
    spec = Table(write="append", contract=contract)
    name = f"{terms.name.partition('.')[0]}.{child.name}"
    child_terms = replace(terms, name=name, spec=spec, keys=(ID,))
    wanted = f"{ROOT_ID} in (select {ID} from read_parquet({literal(str(waiting))}))"
    rejected = f"{ROOT_ID} in ({', '.join(map(literal, parent.quarantine.values(ID))) or 'null'})"
    extract = Extract(_resource(child, wanted), types=child.types)
    loaded = _load_rows(load, child_terms, extract, Landed(load.desk, name), parent.task)
    quarantine = Quarantine(load.desk, name, load.load_id, load.at)
    for batch in child.batches(rejected):
        reason = f"its row of {terms.name} is in quarantine"
        quarantine.add(batch, [reason] * batch.num_rows)
    counts = loaded.counts
    quarantine.hold()
    counts.quarantined += (fresh := quarantine.commit(load.transaction))
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
