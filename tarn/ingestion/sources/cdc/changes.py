"""A slice of one table's changes as rows to merge: the last state of each key.

What the log does not repeat (a large value that an update left, a deleted row's values) is taken
from the row in the lake. Where that cannot be right it is asked of the source: the row may not be
in the lake, it may be there in an older state because a later one is in quarantine, or the change
was made when the table had other columns. The source may be ahead then; what it is ahead by comes
with the changes that follow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import dlt
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from dlt.extract import DltResource

from tarn.ingestion.landed import DELETED, DELETED_AT, Landed
from tarn.ingestion.sources import BATCH_ROWS
from tarn.ingestion.sources.cdc.pgoutput import UNCHANGED
from tarn.ingestion.sources.cdc.server import Followable, Server
from tarn.ingestion.sources.cdc.spool import (
    AT,
    DELETE,
    LSN,
    OLD,
    OP,
    SEQ,
    TRUNCATE,
    UNTOLD,
    Slice,
)
from tarn.ingestion.sources.cdc.text import delivered, readable
from tarn.storage.duck import literal, quoted

_ASKED_AT_ONCE = 1_000
"""Keys in one question to the source."""
_MISSING = "tarn missing"


@dataclass(frozen=True)
class Followed:
    """A table that is followed, as both sides have it."""

    there: Followable
    columns: Mapping[str, str]
    """Name in the source by name in the lake."""
    keys: Sequence[str]
    """Spelt as in the lake."""
    kinds: Mapping[str, pa.DataType]
    """Types as a query gives them."""
    deletes: Literal["hard", "soft"]

    @property
    def schema(self) -> pa.Schema:
        """Of the batches that `Changes` gives."""
        columns = [(name, delivered(kind)) for name, kind in self.kinds.items()]
        mark = (DELETED, pa.bool_()) if self.deletes == "hard" else (DELETED_AT, pa.timestamp("us"))
        return pa.schema([*columns, mark])


class Changes:
    """One slice, on its way into the lake."""

    def __init__(
        self, server: Server, table: Followed, slice_: Slice, landed: Landed, mark: str
    ) -> None:
        self.server, self.table, self.slice = server, table, slice_
        self.landed, self.mark = landed, mark
        self._read = self._given = 0

    def open(self) -> DltResource:
        return dlt.resource(self._batches(), name=self.table.there.name)

    def superseded(self) -> int:
        """How many of the changes that were read are not among the rows."""
        return self._read - self._given

    def _batches(self) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist([], schema=self.table.schema)
        # Another load may have come further while this one waited for its turn.
        self.landed = Landed(self.landed.desk, self.landed.name)
        with self.landed.desk.session() as session:
            self._spooled(session)
            seq, at = self._truncated(session)
            emitted = []
            for batch in session.execute(self._fold(seq)).to_arrow_reader(BATCH_ROWS):
                rows = self._rows(pa.Table.from_batches([batch]))
                self._given += rows.num_rows
                if at is not None:
                    emitted.append(rows.select(self.table.keys))
                yield from rows.combine_chunks().to_batches()
        if at is not None:
            for batch in self._emptied(pa.concat_tables(emitted or [self._none()]), at):
                self._read += batch.num_rows
                self._given += batch.num_rows
                yield batch

    def _spooled(self, session: duckdb.DuckDBPyConnection) -> None:
        """The changes as the view `spooled`, without those that the lake has."""
        assert self.landed.table is not None
        since = self.landed.table.transaction_version(self.mark) or 0
        files = ", ".join(literal(str(file)) for file in self.slice.files)
        read = f"from read_parquet([{files}], union_by_name = true)"
        known = session.execute(f"select * {read} limit 0").to_arrow_table().column_names
        columns = [
            quoted(name) if name in known else f"cast(null as varchar) as {quoted(name)}"
            for name in (SEQ, LSN, OP, AT, OLD, *self.table.kinds)
        ]
        session.execute(
            f"create or replace temp view spooled as select {', '.join(columns)} {read}"
            f" where {quoted(LSN)} >= {since}"
        )
        (self._read,) = session.execute("select count(*) from spooled").fetchone() or (0,)
        self._given = 0

    def _truncated(self, session: duckdb.DuckDBPyConnection) -> tuple[int, object]:
        """The last truncation: its place in the log, and when it was; (-1, None) without one."""
        found = session.execute(
            f"select max({quoted(SEQ)}), max({quoted(AT)}) from spooled"
            f" where {quoted(OP)} = {literal(TRUNCATE)}"
        ).fetchone()
        return (found[0], found[1]) if found and found[0] is not None else (-1, None)

    def _fold(self, after: int) -> str:
        """SQL of the last state of each key, values that are not known left UNCHANGED."""
        keys = ", ".join(quoted(key) for key in self.table.keys)
        seq = quoted(SEQ)
        last = [f"arg_max({quoted(name)}, {seq}) as {quoted(name)}" for name in (OP, AT)]
        return f"""
            select {keys}, max({seq}) as {seq}, {", ".join(last)},
                bool_or({quoted(OLD)}) as {quoted(OLD)}
                {"".join(f", {self._last(name)}" for name in self._others)}
            from spooled where {seq} > {after} and {quoted(OP)} <> {literal(TRUNCATE)}
            group by {keys} order by {seq}
        """

    def _last(self, name: str) -> str:
        column = quoted(name)
        known = f"filter (where {column} is distinct from {_UNCHANGED})"
        return (
            f"case when count(*) {known} = 0 then {_UNCHANGED}"
            f" else arg_max_null({column}, {quoted(SEQ)}) {known} end as {column}"
        )

    @property
    def _others(self) -> list[str]:
        """Columns that are no keys."""
        return [name for name in self.table.kinds if name not in self.table.keys]

    def _rows(self, folded: pa.Table) -> pa.Table:
        """Folded changes as rows of the lake, those that a later change takes away left out."""
        is_deleted = pc.equal(folded[OP], DELETE).combine_chunks()
        is_asked = folded[OLD].combine_chunks()
        unknown: dict[str, pa.Array] = {}
        for name in self._others:
            column = folded[name].combine_chunks()
            is_untold = pc.fill_null(pc.equal(column, UNTOLD), False)
            is_unchanged = pc.fill_null(pc.equal(column, UNCHANGED), False)
            is_asked = pc.or_(is_asked, is_untold)
            if pc.any(is_unchanged).as_py() and self._is_lake_behind:
                is_asked = pc.or_(is_asked, is_unchanged)
            unknown[name] = pc.or_(is_untold, is_unchanged)
        rows = self._as_delivered(folded, unknown)
        rows, is_missing = self._completed(rows, unknown, is_deleted)
        is_left_out = pc.or_(pc.and_not(is_asked, is_deleted), is_missing)
        asked = self._asked(folded.filter(pc.and_not(is_left_out, is_deleted)))
        return pa.concat_tables([rows.filter(pc.invert(is_left_out)), asked])

    @cached_property
    def _is_lake_behind(self) -> bool:
        """Whether a state of some row was ever put into quarantine, and so is not in the lake."""
        name = self.landed.name.replace("raw_", "quarantine_", 1)
        return self.landed.desk.lake.table(name) is not None

    def _as_delivered(self, folded: pa.Table, unknown: Mapping[str, pa.Array]) -> pa.Table:
        columns = []
        for name, kind in self.table.kinds.items():
            column = folded[name].combine_chunks()
            if name in unknown:
                column = pc.if_else(unknown[name], pa.scalar(None, pa.string()), column)
            columns.append(readable(column, kind))
        return pa.Table.from_arrays([*columns, self._mark(folded)], schema=self.table.schema)

    def _mark(self, folded: pa.Table) -> pa.Array:
        is_deleted = pc.equal(folded[OP], DELETE).combine_chunks()
        if self.table.deletes == "hard":
            return is_deleted
        return pc.if_else(
            is_deleted, folded[AT].combine_chunks(), pa.scalar(None, pa.timestamp("us"))
        )

    def _completed(
        self, rows: pa.Table, unknown: Mapping[str, pa.Array], is_deleted: pa.Array
    ) -> tuple[pa.Table, pa.Array]:
        """Unknown values taken from the lake, and a mask of the rows for which it has none. What
        the log does not repeat for its size is not null: where the lake has null, it is behind."""
        if self.table.deletes == "hard":
            # A row that is to go needs no values.
            unknown = {name: pc.and_not(mask, is_deleted) for name, mask in unknown.items()}
        unknown = {name: mask for name, mask in unknown.items() if pc.any(mask).as_py()}
        if not unknown:
            return rows, pa.repeat(pa.scalar(False), rows.num_rows)
        incoming = rows.append_column("tarn deleted", is_deleted)
        for i, mask in enumerate(unknown.values()):
            incoming = incoming.append_column(f"tarn unknown {i}", mask)
        with self.landed.desk.session() as session:
            incoming = incoming.append_column("tarn row", pa.array(range(rows.num_rows)))
            session.register("incoming", incoming)
            kinds = dict(zip(incoming.column_names, session.table("incoming").types, strict=True))
            chosen = [f"incoming.{quoted(name)}" for name in rows.column_names]
            missing = []
            for i, name in enumerate(unknown):
                at = rows.column_names.index(name)
                value = f"known.{quoted(name)}" if name in self._known_columns() else "null"
                chosen[at] = (
                    f'case when "tarn unknown {i}" then cast({value} as {kinds[name]})'
                    f" else {chosen[at]} end as {quoted(name)}"
                )
                lacks = f'({value} is null and not "tarn deleted")'
                key = quoted(self.table.keys[0])
                missing.append(f'("tarn unknown {i}" and (known.{key} is null or {lacks}))')
            result = session.execute(f"""
                select {", ".join(chosen)}, {" or ".join(missing)} as {quoted(_MISSING)}
                from incoming left join ({self.landed.select}) as known on {self._same(session)}
                order by "tarn row"
            """).to_arrow_table()
        is_missing = result[_MISSING].combine_chunks()
        return result.drop_columns([_MISSING]).cast(rows.schema), is_missing

    def _known_columns(self) -> list[str]:
        assert self.landed.schema is not None
        return list(self.landed.schema.names)

    def _same(self, session: duckdb.DuckDBPyConnection) -> str:
        """When a row of `incoming` and one of `known` have the same key."""
        return " and ".join(
            f"known.{quoted(key)} = try_cast(incoming.{quoted(key)} as {kind})"
            for key, kind in zip(self.table.keys, self._key_types(session), strict=True)
        )

    def _key_types(self, session: duckdb.DuckDBPyConnection) -> list[str]:
        """DuckDB's types of the keys in the lake."""
        keys = ", ".join(quoted(key) for key in self.table.keys)
        described = session.execute(f"describe select {keys} from ({self.landed.select})")
        return [str(row[1]) for row in described.fetchall()]

    def _asked(self, folded: pa.Table) -> pa.Table:
        """The rows as the source has them now; one that it lacks will be deleted by the log."""
        tables = [self._none()]
        for start in range(0, folded.num_rows, _ASKED_AT_ONCE):
            some = folded.slice(start, _ASKED_AT_ONCE)
            keys = {self.table.columns[key]: some[key].to_pylist() for key in self.table.keys}
            rows = list(self.server.rows(self.table.there, list(self.table.columns.values()), keys))
            tables.append(self._from_source(rows))
        return pa.concat_tables(tables)

    def _from_source(self, rows: Sequence[Sequence[str | None]]) -> pa.Table:
        lists = zip(*rows, strict=True) if rows else [[] for _ in self.table.kinds]
        kinds = self.table.kinds.values()
        columns = [
            readable(pa.array(each, pa.string()), kind)
            for each, kind in zip(lists, kinds, strict=True)
        ]
        kept = False if self.table.deletes == "hard" else None
        mark = pa.repeat(pa.scalar(kept, self.table.schema[-1].type), len(rows))
        return pa.Table.from_arrays([*columns, mark], schema=self.table.schema)

    def _emptied(self, kept: pa.Table, at: object) -> Iterator[pa.RecordBatch]:
        """Deletions of all rows in the lake but those whose keys are told."""
        is_soft = self.table.deletes == "soft"
        known = self._known_columns()
        with self.landed.desk.session() as session:
            session.register("incoming", kept)
            kinds = self._sql_types(session)
            chosen = [
                f"cast({quoted(name)} as {kind}) as {quoted(name)}"
                if name in self.table.keys or (is_soft and name in known)
                else f"cast(null as {kind}) as {quoted(name)}"
                for name, kind in kinds.items()
            ]
            mark = f"cast($at as timestamp) as {DELETED_AT}" if is_soft else f"true as {DELETED}"
            condition = f"{DELETED_AT} is null" if is_soft else "$at is not null"
            sql = f"""
                select {", ".join(chosen)}, {mark} from ({self.landed.select}) as known
                where {condition}
                    and not exists (select 1 from incoming where {self._same(session)})
            """
            for batch in session.execute(sql, {"at": at}).to_arrow_reader(BATCH_ROWS):
                yield batch.cast(self.table.schema)

    def _sql_types(self, session: duckdb.DuckDBPyConnection) -> Mapping[str, str]:
        session.register("delivered", self._none())
        types = session.table("delivered").types
        return dict(zip(self.table.kinds, map(str, types), strict=False))

    def _none(self) -> pa.Table:
        return self.table.schema.empty_table()


_UNCHANGED = "chr(0)"
assert UNCHANGED == "\0"
