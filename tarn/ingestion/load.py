"""Loads one table: from its source, through its contract, into the lake, each row once.

Each table's rows become visible in one Delta commit. Order makes a load that is killed
repeatable: quarantine, then children, then the rows themselves, and last what is to be remembered
of files. Whatever a killed load left is found again by content and completed.

A full refresh looks at the source as if nothing had landed, and puts what comes in place of
everything. A backfill does so for a span of the cursor: rows with a key are merged and those that
the source no longer has are deleted, in one commit; rows without take the place of the span.
"""

from collections.abc import Sequence
from dataclasses import replace

from tarn.errors import TarnError
from tarn.ingestion.contract import Terms
from tarn.ingestion.declarations import Declared
from tarn.ingestion.intake import Load
from tarn.ingestion.landed import Landed
from tarn.ingestion.ledger import Counts
from tarn.ingestion.nested import load_objects
from tarn.ingestion.rows import Loaded, limited, load_rows
from tarn.ingestion.sources import Extract, Source
from tarn.ingestion.unfinished import begin, finish, is_unfinished
from tarn.progress import Task


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
    """All that the source gives, in as many parts as it is given."""
    table = terms.name.partition(".")[2]
    loaded: list[Loaded] = []
    while extract := source.extract(table, landed.for_source):
        loaded += _load_part(load, terms, extract, landed, task)
        if not extract.is_more:
            break
        landed = landed.again()
    return _together(loaded) or [Loaded(table, Counts())]


def _together(parts: Sequence[Loaded]) -> list[Loaded]:
    """The parts of each table as one."""
    tables: dict[str, Loaded] = {}
    for part in parts:
        before = tables.setdefault(part.table, part)
        if before is not part:
            both = zip(vars(before.counts).values(), vars(part.counts).values(), strict=True)
            notes = dict.fromkeys((*before.notes, *part.notes))
            counts = Counts(*map(sum, both))
            changes = (*before.changes, *part.changes)
            tables[part.table] = replace(part, counts=counts, notes=tuple(notes), changes=changes)
    return list(tables.values())


def _load_part(
    load: Load, terms: Terms, extract: Extract, landed: Landed, task: Task
) -> list[Loaded]:
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
        loaded = load_objects(load, terms, extract, landed, task)
    else:
        loaded = [load_rows(load, terms, limited(extract, load), landed, task)]
    if any(each.counts.moved for each in loaded) or extract.is_changed:
        extract.remember(load.load_id)
    if landed.is_anew and not load.options.limit:
        finish(load.desk.lake, terms.name)
    return loaded


def _not(load_id: str) -> None:
    """Remember nothing: the next load is to read it again."""


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
