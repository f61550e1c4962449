"""Objects and their children: rows wait on disk until their children are in the lake."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp

import dlt
import pyarrow as pa
import pyarrow.parquet as pq
from dlt.extract import DltResource, DltSource

from tarn.ingestion.contract import Terms
from tarn.ingestion.declarations.base import Contract, Table
from tarn.ingestion.intake import Intake, Load
from tarn.ingestion.landed import Landed
from tarn.ingestion.ledger import Counts
from tarn.ingestion.objects import ID, ROOT_ID, Unpacked, unpack
from tarn.ingestion.quarantine import Quarantine
from tarn.ingestion.rows import (
    Loaded,
    check_may_empty,
    done,
    is_same,
    limited,
    load_rows,
    may_be_same,
    put,
    telling,
)
from tarn.ingestion.sources import BATCH_ROWS, Extract, Rejected
from tarn.ingestion.unfinished import begin
from tarn.progress import Task
from tarn.storage.duck import literal
from tarn.storage.predicates import any_of
from tarn.storage.writer import write

_LISTED = 1000
"""So many rows' children are deleted in one commit."""


def load_objects(
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
    intake = Intake(load, keyed, limited(rows, load), landed, task)
    try:
        with telling(intake):
            loaded = _with_children(intake, children, folder)
    finally:
        intake.close()
    _drop_orphans(load, terms)
    return loaded


def _nothing_came(load: Load, terms: Terms, landed: Landed, extract: Extract) -> Loaded:
    """No object at all, so not even columns are known."""
    is_replaced = terms.spec.write == "replace" or landed.is_anew
    if is_replaced and landed.kept is not None and landed.rows:
        check_may_empty(landed, terms)
        empty = pa.schema(landed.kept.schema().to_arrow()).empty_table()
        write(load.desk.lake, landed.name, empty, mode="replace", properties=load.properties)
    return Loaded(terms.name.partition(".")[2], Counts(), tuple(extract.notes))


def _with_children(intake: Intake, children: Sequence[Unpacked], folder: Path) -> list[Loaded]:
    reader = intake.open()
    assert reader is not None
    waiting = folder / "waiting.parquet"
    with pq.ParquetWriter(waiting, reader.schema, compression="zstd") as spool:
        for batch in reader:
            spool.write_batch(batch)
    if may_be_same(intake) and is_same(intake, _read(waiting)):
        return [done(intake, 0)]
    if children and intake.landed.is_anew:
        begin(intake.load.desk.lake, intake.terms.name)
    loaded = [_load_child(intake, child, waiting) for child in children]
    is_empty = not pq.read_metadata(waiting).num_rows
    return [done(intake, put(intake, lambda: _read(waiting), is_empty)), *loaded]


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
            _delete(load, child, orphans)


def _delete(load: Load, child: Landed, roots: Sequence[tuple[str]]) -> None:
    assert child.table is not None
    empty = pa.schema(child.table.schema().to_arrow()).empty_table()
    for start in range(0, len(roots), _LISTED):
        where = any_of([ROOT_ID], roots[start : start + _LISTED])
        write(
            child.desk.lake,
            child.name,
            empty,
            mode="replace_where",
            where=where,
            properties=load.properties,
        )
