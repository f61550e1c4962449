"""PostgreSQL followed by its log (logical replication).

A table is read once, as it was at one position of the log; from there on its changes are applied.
Each commit of rows carries the position that it reaches. The slot, shared by all tables of a
system, is advanced after the commits, and only to where all tables have come. So a load that is
killed anywhere is repeated from the lake's own positions, and what it had committed is left out.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime

import dlt
import psycopg
import pyarrow as pa
from dlt.extract import DltResource
from obstore.exceptions import BaseError

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.declarations.sql_database import SqlTable
from tarn.ingestion.landed import DELETED, DELETED_AT, Desk, Landed
from tarn.ingestion.sources import Extract
from tarn.ingestion.sources.cdc.changes import Changes, Followed
from tarn.ingestion.sources.cdc.positions import Position, least, read_positions, shown
from tarn.ingestion.sources.cdc.server import Followable, Server, Slot, Snapshot, roles_rights
from tarn.ingestion.sources.cdc.spool import Pile, spool
from tarn.ingestion.sources.sql_database import SqlDatabase
from tarn.ingestion.sources.sql_database.postgres import PostgresReading
from tarn.settings import Settings
from tarn.storage.clock import now
from tarn.storage.lake import Lake

log = logging.getLogger(__name__)


class FollowedDatabase(SqlDatabase):
    """A PostgreSQL database whose tables are followed."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        super().__init__(declared, home)
        self.home = home
        self._load: _Load | None = None
        self._failure: Exception | None = None
        if self.url.get_backend_name() != "postgresql":
            raise TarnError(
                f"mode: cdc follows PostgreSQL, and this is {self.url.get_backend_name()}",
                declared.file.where("mode"),
                "remove mode: to load it by queries",
            )

    @property
    def tables(self) -> Mapping[str, Table]:
        """The log tells what is new; cursors that the database offers are of no use."""
        none = {"cursor": None, "overlap": None}
        return {name: spec.model_copy(update=none) for name, spec in super().tables.items()}

    def extract(self, table: str, landed: Landed) -> Extract | None:
        if landed.desk.lake.is_rehearsal and landed.table is None:
            # To follow a table leaves marks in the source.
            return super().extract(table, landed)
        if self._failure is not None:
            raise self._failure
        if self._load is None:
            self._load = self._begun(landed.desk)
        return self._load.extract(table, landed)

    def close(self) -> None:
        if self._load is not None:
            self._load.close()
            self._load = None

    def _begun(self, desk: Desk) -> "_Load":
        """What fails here fails all tables, and is not tried again for each."""
        server = Server(self.url, self.where)
        try:
            return _Load(self, server, desk)
        except Exception as failure:
            server.close()
            self._failure = failure
            raise

    def check(self) -> list[str]:
        lines = super().check()
        server = Server(self.url, self.where)
        try:
            server.check_log()
            slot_name = read_positions(Lake.open(self.home), self.declared.name, self.where).slot
            lines += [*_rights(server), _told(slot_name, server.slot(slot_name))]
            for name in self.tables:
                try:
                    self.followable(server, name)
                    lines.append(f"{name} can be followed")
                except TarnError as error:
                    lines.append(f"{name} cannot be followed: {error.what}; {error.fix}")
        finally:
            server.close()
        return lines

    def spec(self, name: str) -> SqlTable:
        spec = self.tables[name]
        assert isinstance(spec, SqlTable)
        return spec

    def followable(self, server: Server, name: str) -> Followable:
        """The table in the catalog; raises TarnError with the SQL that lets it be followed."""
        found, _ = self._readable(name)
        spec, where = self.spec(name), self.declared.file.where("tables", name)
        there = server.table(found.table.schema, found.table.name)
        if there is None or there.kind not in "rp":
            raise TarnError(
                "only tables are in the log, and this is none",
                where,
                "load it in a system of its own, without mode: cdc",
            )
        table = there.sql.as_string(server.connection)
        if spec.write != "merge":
            raise TarnError(
                f"{table} has no key that the database knows",
                where,
                f"add primary_key, and let an administrator run: alter table {table} replica"
                " identity full",
            )
        keys = {found.columns[key].name for key in spec.primary_key if key in found.columns}
        if not keys <= there.identity:
            raise TarnError(
                f"the log does not tell the primary_key ({', '.join(spec.primary_key)}) of rows"
                f" of {table} that are deleted",
                where,
                f"let an administrator run: alter table {table} replica identity full"
                " (or give it that primary key)",
            )
        return there

    def reading(self, name: str, there: Followable, landed: Landed) -> PostgresReading:
        """How the table would be read if it were not followed; only what is in the log too."""
        found, spec = self._readable(name)
        logged = {column.name for column in there.columns}
        columns = {lake: column for lake, column in found.columns.items() if column.name in logged}
        reading = self._reading(name, replace(found, columns=columns), spec, None, landed.schema)
        assert isinstance(reading, PostgresReading)
        return reading


class _Load:
    """One load of a followed system: what its tables share."""

    def __init__(self, source: FollowedDatabase, server: Server, desk: Desk) -> None:
        self.source, self.server, self.desk = source, server, desk
        self.system = source.declared.name
        self.server.check_log()
        self.positions = read_positions(desk.lake, self.system, source.where)
        self.slot = self.server.slot(self.positions.slot)
        self.there: dict[str, Followable] = {}
        self.problems: dict[str, TarnError] = {}
        self.piles: dict[str, Pile] = {}
        self.lag = ""
        self._snapshot: Snapshot | None = None
        self._describe()
        self._join()
        self._spool()

    def extract(self, name: str, landed: Landed) -> Extract | None:
        if name in self.there and landed.table is None:
            return self._first(name, landed)
        if name in self.problems:
            raise self.problems[name]
        pile = self.piles[name]
        if pile.failure:
            raise pile.failure
        return self._next(pile, landed) if pile.slices else None

    def close(self) -> None:
        """Remember how far each table has come, then let the server forget what is before."""
        try:
            if self._snapshot is not None:
                self._snapshot.close()
            self.slot = self.server.slot(self.positions.slot)
            is_kept = self.slot is not None and not self.slot.is_lost
            if self.slot is not None and is_kept and not self.desk.lake.is_rehearsal:
                self._advance(self.slot)
        except (psycopg.Error, BaseError, OSError) as error:
            log.warning("%s: the slot stays where it is: %s", self.system, str(error).strip())
        finally:
            self.server.close()

    def _describe(self) -> None:
        """Look up all tables; what is wrong with one does not concern the others."""
        for name in self.source.tables:
            try:
                self.there[name] = self.source.followable(self.server, name)
            except TarnError as error:
                self.problems[name] = error

    def _join(self) -> None:
        """Let the log have the tables. Those that it has not had all the time are forgotten first:
        declared no more, or taken out by somebody."""
        known = self.server.published(self.positions.slot)
        had = {name for name, there in self.there.items() if (there.schema, there.name) in known}
        gone = set(self.positions.tables) - had
        for name in gone:
            del self.positions.tables[name]
        if gone and not self.desk.lake.is_rehearsal:
            self.positions.write(self.desk.lake, self.system)
        if self.there and not self.desk.lake.is_rehearsal:
            self.server.publish(self.positions.slot, list(self.there.values()))

    def _spool(self) -> None:
        """Put what the log has for each table on disk."""
        for name, there in self.there.items():
            try:
                position = self._position(name)
            except TarnError as error:
                self.problems[name] = error
                continue
            if position is not None:
                folder = self.desk.folder / self.system / f"{name}.changes"
                keys = self.source.spec(name).primary_key
                self.piles[name] = Pile(self._raw(name), there.columns, keys, position, folder)
        if self.slot is None or not self.piles:
            return
        piles = {
            (self.there[name].schema, self.there[name].name): pile
            for name, pile in self.piles.items()
        }
        behind = self.slot.bytes_behind
        try:
            first = spool(self.server.changes(self.positions.slot), piles)
        except psycopg.errors.UndefinedObject as error:
            raise self._lost(f"publication {self.positions.slot} was made anew") from error
        self.lag = _behind(behind, first)

    def _position(self, name: str) -> int | None:
        """Up to where a table holds all changes; raises TarnError where the log has a gap then."""
        table = Landed(self.desk, self._raw(name)).table
        try:
            position = self.positions.of(name, table)
        except TarnError as error:
            raise self._lost(error.what) from None
        if position is None:
            return None
        slot = self.slot
        if slot is None:
            raise self._lost(f"replication slot {self.positions.slot} is gone")
        if slot.is_lost:
            raise self._lost(
                f"replication slot {self.positions.slot} was given up by the server, as it was"
                " further behind than max_slot_wal_keep_size"
            )
        if slot.confirmed > position:
            raise self._lost(
                f"replication slot {self.positions.slot} begins at {shown(slot.confirmed)}, as if"
                " somebody else had read it or made it anew"
            )
        if position > slot.current:
            raise self._lost(f"the server's log ends at {shown(slot.current)}: it has gone back")
        return position

    def _lost(self, reason: str) -> TarnError:
        names = ", ".join(f"raw_{self.system}/{name}" for name in self.there)
        return TarnError(
            f"changes may be missing: {reason}",
            self.source.declared.file.where("mode"),
            f"nothing was written; load the tables anew: tarn ingest {self.system} --full-refresh"
            f" (or delete them from the lake: {names})",
        )

    def _first(self, name: str, landed: Landed) -> Extract:
        """The whole table, as it was at a position of the log."""
        snapshot = self._at_snapshot()
        if self.positions.tables.get(name) != Position():
            # Before the rows: a table that is in the lake without this was not followed.
            self.positions.tables[name] = Position()
            self.positions.write(self.desk.lake, self.system)
        reading = self.source.reading(name, self.there[name], landed)
        begin = "begin isolation level repeatable read read only"
        reading.session = (begin, f"set transaction snapshot '{snapshot.name}'")
        is_soft = self.source.spec(name).deletes == "soft"
        notes = [f"read whole at {shown(snapshot.lsn)}"]
        return Extract(
            lambda: _undeleted(reading.open()) if is_soft else reading.open(),
            types=reading.types,
            is_changed=True,
            transaction=(self.positions.mark, snapshot.lsn),
            notes=notes,
        )

    def _at_snapshot(self) -> Snapshot:
        """One for all tables of this load. The slot must be there before it, to have the rest."""
        if self._snapshot is None:
            name = self.positions.slot
            if self.slot is not None and self.slot.is_lost:
                self.server.drop_slot(name)
                self.slot = None
            is_followed = self.slot is not None
            if not is_followed:
                # Before the slot: one that no lake knows of would keep the server's log for ever.
                self.positions.write(self.desk.lake, self.system)
            slot = self.server.own(name) if is_followed else name
            self._snapshot = Snapshot(self.server, slot, is_temporary=is_followed)
            self.slot = self.server.slot(name)
        return self._snapshot

    def _next(self, pile: Pile, landed: Landed) -> Extract:
        """The next slice of a table's changes."""
        name = landed.name.partition(".")[2]
        slice_ = pile.slices[0]
        is_last = len(pile.slices) == 1
        table = self._followed(name, landed)
        changes = Changes(self.server, table, slice_, landed, self.positions.mark)
        until = max(slice_.until, self.server.reached) if is_last else slice_.until
        return Extract(
            changes.open,
            types=table.kinds,
            redelivered=None,
            is_changed=True,
            transaction=(self.positions.mark, until),
            remember=lambda load_id: pile.done(),
            superseded=changes.superseded,
            deleted=DELETED if table.deletes == "hard" else None,
            is_more=not is_last,
            notes=[self.lag, *self._unfilled(table, landed)],
        )

    def _unfilled(self, table: Followed, landed: Landed) -> Iterator[str]:
        """The log has no change of a row that only gets a default in a new column."""
        assert landed.schema is not None
        if new := [name for name in table.kinds if name not in landed.schema.names]:
            yield (
                f"{', '.join(new)}, so far only of rows that changed: tarn ingest {self.system}"
                " --full-refresh fills the others"
            )

    def _followed(self, name: str, landed: Landed) -> Followed:
        there, spec = self.there[name], self.source.spec(name)
        reading = self.source.reading(name, there, landed)
        assert landed.schema is not None
        # A column whose first values fitted no other type is text.
        texts = {field.name: field.type for field in landed.schema if field.type == pa.string()}
        kinds = {n: texts.get(n, kind) for n, kind in reading.landed_types().items()}
        columns = {lake: str(column.name) for lake, column in reading.columns.items()}
        return Followed(there, columns, spec.primary_key, kinds, spec.deletes)

    def _raw(self, name: str) -> str:
        return f"raw_{self.system}.{name}"

    def _advance(self, slot: Slot) -> None:
        before = {name: Position(**vars(each)) for name, each in self.positions.tables.items()}
        upto = {name: self._reached(name) for name in self.there}
        target = least(list(upto.values()))
        if before != self.positions.tables or (target is not None and target > slot.confirmed):
            self.positions.write(self.desk.lake, self.system)
        if target is not None and target > slot.confirmed:
            self.server.advance(self.positions.slot, target)

    def _reached(self, name: str) -> int | None:
        """Up to where a table has come now; None if it does not follow, so holds nothing back."""
        table = Landed(self.desk, self._raw(name)).table
        committed = table.transaction_version(self.positions.mark) if table else None
        if committed is None or name not in self.positions.tables:
            return None
        pile = self.piles.get(name)
        upto = int(committed)
        if pile is not None:
            is_done = not pile.slices and pile.failure is None
            upto = max(upto, self.server.reached if is_done else pile.since)
        elif name in self.problems:
            return None
        self.positions.tables[name] = Position(int(committed), upto)
        return upto


def _undeleted(rows: DltResource) -> DltResource:
    """With the column that tells when a row was deleted, which none was."""

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            yield batch.append_column(DELETED_AT, pa.nulls(batch.num_rows, pa.timestamp("us")))

    return dlt.resource(batches(), name=rows.name)


def _rights(server: Server) -> Iterator[str]:
    rights = roles_rights(server)
    yield f"the role may {'' if 'replication' in rights else 'NOT '}make replication slots"
    yield f"the role may {'' if 'create' in rights else 'NOT '}make publications"


def _told(name: str, slot: Slot | None) -> str:
    if slot is None:
        return f"slot {name} is not there: the first load makes it"
    if slot.is_lost:
        return f"slot {name} is lost: load the system anew"
    return f"slot {name} is {_size(slot.bytes_behind)} behind and keeps {_size(slot.bytes_kept)}"


def _behind(lag: int, first: datetime | None) -> str:
    seconds = (now() - first).total_seconds() if first else 0
    return f"was {_size(lag)} and {max(0, round(seconds)):,} s behind"


def _size(bytes_: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if bytes_ < 1024:
            return f"{bytes_:,.0f} {unit}"
        bytes_ /= 1024
    return f"{bytes_:,.1f} GB"
