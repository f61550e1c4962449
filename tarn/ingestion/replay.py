"""Rows that come back from quarantine: through the contract as it is now, and into their table as
any load writes it.

They are in two tables for a moment, and a process may be killed then. So a note in the lake first
names the rows; the commit that loads them carries the note's number, and only then are they taken
out of quarantine. Who finds a note looks for its number: with it the rest is done, without it
nothing was.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import dlt
import obstore
import pyarrow as pa
import pyarrow.compute as pc

from tarn.errors import TarnError
from tarn.ingestion.contract import Sieve, Terms
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.intake import Load, sql_type
from tarn.ingestion.landed import LOADED_AT, SOURCE_FILE, Desk, Landed
from tarn.ingestion.ledger import Counts, TableLoad, record, remembered
from tarn.ingestion.nested import child_spec
from tarn.ingestion.objects import ID, ROOT_ID
from tarn.ingestion.quarantine import UNREAD, name_of, remove, rows_of
from tarn.ingestion.rows import load_rows
from tarn.ingestion.shaping import Arrival, Before, shape
from tarn.ingestion.sources import BATCH_ROWS, Extract
from tarn.progress import Task
from tarn.storage.clock import named_at, now
from tarn.storage.duck import literal, quoted, select_from
from tarn.storage.lake import OWN_SCHEMA
from tarn.storage.loads import LOADS

MARK = "tarn.replay"
_ID, _SEEN = "_id", "_seen"
_OWN = (_ID, _SEEN)


@dataclass(frozen=True)
class Replayed:
    """What became of a table's rows in quarantine."""

    table: str
    counts: Counts
    """Of those that left it; deduplicated are in the lake already, or older than what is there."""
    stayed: int


@dataclass(frozen=True)
class _Rows:
    """The rows of one quarantine that were asked for, as the table would get them."""

    load: Load
    terms: Terms
    landed: Landed
    condition: str
    """Which of the quarantine's rows, in SQL."""

    @cached_property
    def batches(self) -> list[pa.RecordBatch]:
        """All the table's columns as text, the oldest rows first."""
        known = self.load.desk.lake.table(name_of(self.terms.name))
        assert known is not None
        assert self.landed.schema is not None
        columns = ", ".join(_value(field) for field in self.landed.schema)
        names = ", ".join(literal(name) for name in self.landed.schema.names)
        is_foreign = f"k not in ({names}) and json_extract_string(_row, k) is not null"
        foreign = f"list_filter(json_keys(_row), lambda k: {is_foreign})"
        if self.terms.spec.contract.columns == "discard":
            foreign = "[]"
        sql = f"""
            select {columns}, {_ID}, coalesce(_last_seen, {LOADED_AT}) as {_SEEN}
            from {rows_of(known)}
            where not ends_with({_ID}, '{UNREAD}') and len({foreign}) = 0 and {self.condition}
            order by {_SEEN}
        """
        with self.load.desk.session() as connection:
            return list(connection.execute(sql).to_arrow_reader(BATCH_ROWS))

    @cached_property
    def passing(self) -> pa.Table:
        """Those that keep the contract, in the table's types."""
        if not self.batches:
            return pa.table({ID: [], _ID: [], _SEEN: []})
        sample = self.batches[0].drop_columns(list(_OWN))
        arrival = Arrival(sample.schema, self.types, sample)
        decided = shape(arrival, Before(self.landed, {}, ()), self.terms)
        with closing(Sieve(decided, self.terms)) as sieve:
            return pa.Table.from_batches([self._passed(sieve, batch) for batch in self.batches])

    @property
    def types(self) -> Mapping[str, pa.DataType]:
        assert self.landed.schema is not None
        return {field.name: field.type for field in self.landed.schema}

    @cached_property
    def ids(self) -> list[str]:
        passing: list[str] = self.passing[_ID].to_pylist()
        return passing

    @cached_property
    def current(self) -> list[str]:
        """Those of them that no newer row has taken the place of."""
        if not self.ids:
            return []
        with self.load.desk.session() as connection:
            connection.register("passing", self.passing)
            connection.register("files", self._files())
            sql = f"select {_ID} from passing as p where not ({self._is_older()})"
            return [row[0] for row in connection.execute(sql).fetchall()]

    def resource(self) -> dlt.sources.DltResource:
        """The current ones, as a source would give them."""
        wanted = pa.array(self.current, pa.string())
        chosen = (
            batch.filter(pc.is_in(batch.column(_ID), wanted)).drop_columns(list(_OWN))
            for batch in self.batches
        )
        return dlt.resource(chosen, name=self.terms.name.partition(".")[2])

    def _passed(self, sieve: Sieve, batch: pa.RecordBatch) -> pa.RecordBatch:
        sifted = sieve.sift(batch)
        bad = sifted.bad.column(_ID)
        marks = batch.select(list(_OWN)).filter(pc.invert(pc.is_in(batch.column(_ID), bad)))
        for name in _OWN:
            sifted = replace(sifted, good=sifted.good.append_column(name, marks.column(name)))
        return sifted.good

    def _is_older(self) -> str:
        """SQL: whether the lake has a newer state than the row `p`. The cursor decides, and
        without one what came later."""
        if self.terms.spec.write == "replace":
            # Its source is read whole: a row that did not come with the last is there no more.
            return f"{_SEEN} < {literal(str(self._last_loaded()))}::timestamp"
        keys = self.terms.keys
        if self.is_of_files:
            same = f"f.path = p.{SOURCE_FILE} and f.loaded_at > p.{_SEEN}"
            return f"exists (select 1 from files as f where {same})"
        if not keys or self.terms.spec.write == "append":
            return "false"
        same = " and ".join(f"l.{quoted(key)} = p.{quoted(key)}" for key in keys)
        newer = f"l.{LOADED_AT} > p.{_SEEN}"
        if cursor := self.terms.spec.cursor:
            ours, theirs = f"p.{quoted(cursor)}", f"l.{quoted(cursor)}"
            newer = f"({theirs} > {ours} or ({theirs} is not distinct from {ours} and {newer}))"
        return f"exists (select 1 from ({self.landed.select}) as l where {same} and {newer})"

    @property
    def is_of_files(self) -> bool:
        """Whether rows are told apart by nothing but their file, which comes again as a whole."""
        return not self.terms.keys and SOURCE_FILE in self.types

    def _files(self) -> pa.Table:
        """When the files of the table were loaded last."""
        system, table = self.load.system, self.terms.name.partition(".")[2]
        files = remembered(self.load.desk, system, table) if self.is_of_files else {}
        times = pa.array([named_at(file.load_id) for file in files.values()], pa.timestamp("us"))
        return pa.table({"path": pa.array(list(files), pa.string()), "loaded_at": times})

    def _last_loaded(self) -> datetime:
        """When the last load that wrote the table began."""
        known = self.load.desk.lake.table(LOADS)
        if known is None:
            return datetime.min
        sql = f"""
            select max(load_id) from ({select_from(known)})
            where status = 'loaded' and system = ? and table_name = ?
        """
        table = self.terms.name.partition(".")[2]
        with self.load.desk.session() as connection:
            row = connection.execute(sql, [self.load.system, table]).fetchone()
        return named_at(row[0]) if row and row[0] else datetime.min


def replay(
    load: Load, wanted: Declared, table: str, spec: Table | None, condition: str, task: Task
) -> list[Replayed]:
    """Put a table's rows, and what hangs on them, through the contract again.

    spec is None for a table of children. condition says which rows, in SQL.
    """
    name = f"raw_{wanted.name}.{table}"
    landed = Landed(load.desk, name)
    if landed.schema is None:
        fix = "load it first: then it is known which columns it has"
        raise TarnError("the table is not in the lake yet", name, fix)
    is_objects = ID in landed.schema.names
    at = ("tables", table.partition("__")[0] if spec is None else table)
    owner = spec or child_spec(wanted.system.tables[str(at[1])].contract)
    keys = owner.primary_key or ((ID,) if is_objects else ())
    terms = Terms(name, owner, keys, wanted.file, at, is_objects)
    if spec is None:
        root = Landed(load.desk, f"raw_{wanted.name}.{at[1]}")
        condition += f" and (_row->>'{ROOT_ID}') in (select {ID} from ({root.select}))"
    rows = _Rows(load, terms, landed, condition)
    if not rows.ids:
        return [Replayed(table, Counts(), _count(rows))]
    children = list(_children(load, rows)) if is_objects and spec is not None else []
    family = [*children, rows]
    with _noted(load, {each.terms.name: each.ids for each in family}, name):
        loaded = [_loaded(each, task) for each in family]
    record(load.desk, load.load_id, [_told(each, load) for each in loaded])
    return loaded


def finish_left(desk: Desk, system: str) -> None:
    """Do the rest of what replays that were killed had begun."""
    for file in [entry["path"] for entry in desk.lake.files(f"{OWN_SCHEMA}/replay/{system}")]:
        note = json.loads(bytes(obstore.get(desk.lake.objects, file).bytes()))
        root = desk.lake.table(note["table"])
        if root is not None and root.transaction_version(MARK) == note["number"]:
            _take_out(desk, note["ids"])
        obstore.delete(desk.lake.objects, file)


@contextmanager
def _noted(load: Load, ids: Mapping[str, Sequence[str]], table: str) -> Iterator[None]:
    """Rows that are loaded inside leave the quarantine when they are, and only then. After a
    failure the note stays: who finds it sees how far this came."""
    file = f"{OWN_SCHEMA}/replay/{load.system}/{load.load_id}.json"
    note = {"table": table, "number": load.transaction[1], "ids": ids}
    obstore.put(load.desk.lake.objects, file, json.dumps(note).encode())
    yield
    _take_out(load.desk, ids)
    obstore.delete(load.desk.lake.objects, file)


def _take_out(desk: Desk, ids: Mapping[str, Sequence[str]]) -> None:
    for raw, listed in ids.items():
        remove(desk, raw, listed)


def _loaded(rows: _Rows, task: Task) -> Replayed:
    table = rows.terms.name.partition(".")[2]
    counts = Counts(read=len(rows.ids), deduplicated=len(rows.ids) - len(rows.current))
    stayed = _count(rows) - len(rows.ids)
    if rows.current:
        spec = rows.terms.spec
        if spec.write == "replace":
            spec = spec.model_copy(update={"write": "merge" if rows.terms.keys else "append"})
        mark = (MARK, rows.load.transaction[1])
        known = None if rows.is_of_files else "true"
        extract = Extract(rows.resource, types=rows.types, redelivered=known, transaction=mark)
        terms = replace(rows.terms, spec=spec)
        came = load_rows(rows.load, terms, extract, Landed(rows.load.desk, terms.name), task).counts
        counts.accepted, counts.deduplicated = (
            came.accepted,
            counts.deduplicated + came.deduplicated,
        )
    return Replayed(table, counts, stayed)


def _children(load: Load, root: _Rows) -> Iterator[_Rows]:
    """What was quarantined only because its row was."""
    wanted = pa.array(root.current, pa.string())
    passing = root.passing.filter(pc.is_in(root.passing[_ID], wanted))
    ids = ", ".join(literal(mark) for mark in passing[ID].to_pylist()) or "null"
    for quarantine in load.desk.lake.names():
        if not quarantine.startswith(f"{name_of(root.terms.name)}__"):
            continue
        name = quarantine.replace("quarantine_", "raw_", 1)
        spec = child_spec(root.terms.spec.contract)
        terms = replace(root.terms, name=name, spec=spec, keys=(ID,))
        landed = Landed(load.desk, name)
        if landed.schema is not None:
            yield _Rows(load, terms, landed, f"(_row->>'{ROOT_ID}') in ({ids})")


def _count(rows: _Rows) -> int:
    """All rows that were asked for, unreadable ones too."""
    known = rows.load.desk.lake.table(name_of(rows.terms.name))
    assert known is not None
    with rows.load.desk.session() as connection:
        sql = f"select count(*) from {rows_of(known)} where {rows.condition}"
        row = connection.execute(sql).fetchone()
    assert row is not None
    return int(row[0])


def _told(replayed: Replayed, load: Load) -> TableLoad:
    return TableLoad(load.system, replayed.table, "replayed", replayed.counts, load.at, now())


def _value(field: pa.Field) -> str:
    """SQL of one column of a row that is kept as JSON: text, from which the contract casts as it
    does a file's; only what has parts, or is no text, is made here."""
    key, name = literal(field.name), quoted(field.name)
    if pa.types.is_nested(field.type):
        return f"cast(_row->{key} as {sql_type(field.type)}) as {name}"
    if pa.types.is_binary(field.type):
        return f"cast(_row->>{key} as blob) as {name}"
    return f"_row->>{key} as {name}"
