"""The cheapest correct way to merge rows into a Delta table by key.

delta-rs's MERGE rewrites each file it touches. A merge that touches most of a table takes three
times as long and eight times the memory of writing the table anew, and one that changes nothing
costs as much as one that does. So DuckDB first compares the rows with the table, in a fraction of
a second, and only the difference is written, by the plan that rewrites least.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from tarn.storage.duck import quoted, select_from, session
from tarn.storage.lake import Lake
from tarn.storage.predicates import any_of, column, value
from tarn.storage.types import cast_to

MERGE_SECONDS = 900
"""After so long a merge is taken to hang (delta-rs #4614)."""
REWRITE_FROM = 0.5
"""Where a merge would touch files with so large a share of the rows, writing all is cheaper."""
_ROW, _CHANGED = "tarn row", "tarn changed"


@dataclass(frozen=True)
class Plan:
    """What is left to do, rows that are there already left out."""

    kind: Literal["nothing", "append", "merge", "replace", "rewrite"]
    """append and merge `rows`; replace the region by `rows`; or rewrite the region as `rows` and
    those of its rows that have another key."""
    rows: pa.Table
    region: str | None = None
    """Partitions that hold every row concerned, as a predicate; None is the whole table."""
    same: str = ""
    """For merge: when two rows are the same, and where such rows are."""


@dataclass(frozen=True)
class Merge:
    """Rows on their way into a table by key, as it is at the version it was opened at."""

    lake: Lake
    table: DeltaTable
    source: pa.Table
    """In the table's types; keys are neither null nor repeated."""
    keys: Sequence[str]
    updates: bool
    """Whether rows that are there are updated, or left as they are."""
    deleted: str | None = None
    """A boolean column of `source`, not of the table: true deletes the row of that key."""

    def plan(self) -> Plan:
        """Compare the rows with the table, and choose."""
        if not self._rows_in_touched_files(self.source):
            return self._append(self.source)
        found = self._found()
        numbers = pa.array(range(self.source.num_rows))
        new = self.source.filter(pc.invert(pc.is_in(numbers, found[_ROW])))
        changes = found.filter(found[_CHANGED])
        if not changes.num_rows:
            return self._append(new)
        changed = self.source.take(changes[_ROW])
        rows = pa.concat_tables([changed, kept(new, self.deleted)])
        return self._rewritten(found, rows, changed) or Plan(
            "merge", rows, same=self._same(changed, changes)
        )

    def without_merging(self, plan: Plan) -> Plan:
        """The same change without delta-rs's MERGE."""
        return Plan("rewrite", plan.rows)

    def others(self, plan: Plan, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of the plan's region that have none of the keys to be written."""
        self._session.register("written", plan.rows)
        columns = ", ".join(quoted(name) for name in self._columns)
        same = " and ".join(f"t.{quoted(key)} = w.{quoted(key)}" for key in self.keys)
        for batch in self._session.execute(
            f"select {columns} from {self._target} as t where ({plan.region or 'true'})"
            f" and not exists (from written as w where {same})"
        ).to_arrow_reader(batch_rows):
            for field in schema:
                if field.name not in self._columns:
                    batch = batch.append_column(field, pa.nulls(batch.num_rows, field.type))
            yield cast_to(batch, schema, self.table.table_uri)

    def _append(self, rows: pa.Table) -> Plan:
        rows = kept(rows, self.deleted)
        return Plan("append" if rows.num_rows else "nothing", rows)

    def _rewritten(self, found: pa.Table, rows: pa.Table, changed: pa.Table) -> Plan | None:
        """A plan that writes whole regions, where that is correct and cheaper than a merge."""
        if not set(self._columns) <= set(rows.column_names):
            return None  # Values of columns that only the table has would be lost.
        region = self._partitions_of((found, rows))
        if self._partitions and region is None:
            return None
        rows_there = self._rows_of(region)
        if rows_there is None:
            return None
        if found.num_rows == rows_there and self.updates:
            return Plan("replace", kept(self.source, self.deleted), region)
        if self._rows_in_touched_files(changed) >= REWRITE_FROM * rows_there:
            return Plan("rewrite", rows, region)
        return None

    def _found(self) -> pa.Table:
        """Of each source row whose key the table holds: its number, whether it would change
        anything, and the partition it is in."""
        numbered = self.source.append_column(_ROW, pa.array(range(self.source.num_rows)))
        self._session.register("source", numbered)
        same = " and ".join(f"t.{quoted(key)} = s.{quoted(key)}" for key in self.keys)
        parts = "".join(f", t.{quoted(name)}" for name in self._partitions)
        return self._session.execute(
            f'select s."{_ROW}", {self._changes()} as "{_CHANGED}"{parts}'
            f" from {self._target} as t join source as s on {same}{self._where_found()}"
        ).to_arrow_table()

    def _where_found(self) -> str:
        """SQL that leaves out partitions in which no row can have a key of the source's."""
        within = set(self._partitions) <= set(self.keys)
        partitions = self._partitions_of((self.source,), "t.") if within else None
        return f" where {partitions}" if partitions else ""

    def _changes(self) -> str:
        """SQL: whether the source's row `s` would change the table's row `t`."""
        if not self.updates:
            return "false"
        given = set(self.source.column_names) - {self.deleted}
        if given - set(self._columns):
            return "true"  # It brings a column that the table does not have yet.
        shared = [quoted(name) for name in self._columns if name in given]
        ours, theirs = (", ".join(f"{side}.{name}" for name in shared) for side in "st")
        differs = f"row({ours}) is distinct from row({theirs})"
        if self.deleted is None:
            return differs
        return f"(coalesce(s.{quoted(self.deleted)}, false) or {differs})"

    def _rows_in_touched_files(self, rows: pa.Table) -> int:
        """How many rows the files have that may hold a key of `rows`, by what the log tells."""
        self._session.register("touching", rows.select(self.keys))
        known = self._files.column_names
        conditions = []
        for key in self.keys:
            name, least, greatest = (f'"{kind}{key}"' for kind in ("", "min.", "max."))
            if key in self._partitions:
                conditions.append(f'r.{name} is not distinct from f."partition.{key}"')
            elif f"min.{key}" in known and _is_ordered(rows.schema.field(key).type):
                conditions.append(
                    f"(f.{least} is null or r.{name} >= f.{least})"
                    f" and (f.{greatest} is null or r.{name} <= f.{greatest})"
                )
        where = " and ".join(conditions) or "true"
        answer = self._session.execute(
            "select sum(coalesce(num_records, 1))::bigint from files as f"
            f" where exists (from touching as r where {where})"
        ).fetchone()
        return (answer and answer[0]) or 0

    def _rows_of(self, region: str | None) -> int | None:
        """How many rows a region has; None if the log does not tell."""
        parts = "".join(f', "partition.{name}" as "{name}"' for name in self._partitions)
        answer = self._session.execute(
            "select sum(num_records)::bigint, count(*) = count(num_records)"
            f" from (select num_records{parts} from files) where {region or 'true'}"
        ).fetchone()
        assert answer is not None
        return int(answer[0] or 0) if answer[1] else None

    def _same(self, changed: pa.Table, changes: pa.Table) -> str:
        """A merge's predicate: the keys are equal, and in the partitions and ranges concerned."""
        where = [f"target.{column(key)} = source.{column(key)}" for key in self.keys]
        if partitions := self._partitions_of((changes,), "target."):
            where.append(f"({partitions})")
        for key in self.keys:
            if _is_ordered(changed.schema.field(key).type):
                span = pc.min_max(changed[key])
                where.append(f"target.{column(key)} >= {value(span['min'].as_py())}")
                where.append(f"target.{column(key)} <= {value(span['max'].as_py())}")
        return " and ".join(where)

    def _partitions_of(self, tables: Iterable[pa.Table], prefix: str = "") -> str | None:
        """The partitions that rows are in, as a predicate; None if there is no saying."""
        names = self._partitions
        if not names:
            return None
        schema = pa.schema(self.table.schema().to_arrow())
        kinds = pa.schema([pa.field(name, schema.field(name).type) for name in names])
        together = pa.concat_tables([table.select(names).cast(kinds) for table in tables])
        distinct = together.group_by(names).aggregate([])
        try:
            return any_of(names, [tuple(row.values()) for row in distinct.to_pylist()], prefix)
        except TypeError:
            return None

    @cached_property
    def _session(self) -> duckdb.DuckDBPyConnection:
        connection = session(self.lake)
        connection.register("files", self._files)
        return connection

    @cached_property
    def _files(self) -> pa.Table:
        """What the log tells of each file."""
        return pa.table(self.table.get_add_actions(flatten=True))

    @cached_property
    def _target(self) -> str:
        """SQL that reads the table."""
        return f"({select_from(self.table)})"

    @cached_property
    def _columns(self) -> list[str]:
        return [field.name for field in self.table.schema().fields]

    @cached_property
    def _partitions(self) -> list[str]:
        return list(self.table.metadata().partition_columns)


def kept(rows: pa.Table, deleted: str | None) -> pa.Table:
    """Those that `deleted`, a boolean column, does not mark as there to delete one."""
    return rows if deleted is None else rows.filter(pc.invert(pc.fill_null(rows[deleted], False)))


def in_time(work: Callable[[], object], seconds: float) -> bool:
    """Do the work, but wait no longer than that; whether it was done. Raises what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True, name="merge")
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()


def _is_ordered(kind: pa.DataType) -> bool:
    """Whether the log's least and greatest values of such a column can be compared."""
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_date32(kind))
