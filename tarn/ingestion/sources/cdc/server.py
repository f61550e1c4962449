"""PostgreSQL's side of following it: tables, publication, replication slot, exported snapshots."""

import logging
import select
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import pq, sql

from tarn.errors import TarnError
from tarn.ingestion.sources.cdc.pgoutput import Column

log = logging.getLogger(__name__)

SLOT_SECONDS = 600
"""A slot is made when every transaction that was open has ended; so long it is waited for."""
CHANGES_AT_ONCE = 100_000
"""The server collects so many, or a larger transaction, before it hands them over."""
PATIENCE = 5
"""Seconds until it is told that one waits."""
_SESSION = """
    set client_encoding = 'UTF8'; set TimeZone = 'UTC'; set DateStyle = 'ISO, MDY';
    set IntervalStyle = 'postgres'; set bytea_output = 'hex'; set extra_float_digits = 1;
    set statement_timeout = 0; set idle_in_transaction_session_timeout = 0
"""
"""Values are written in the same form whatever the role's own settings are."""


@dataclass(frozen=True)
class Followable:
    """A table as the catalog describes it now."""

    schema: str
    name: str
    kind: str
    """`relkind`: r is a table, p a partitioned one."""
    identity: frozenset[str]
    """Columns that the log tells of a row that is deleted; none if it tells nothing."""
    columns: tuple[Column, ...]
    """Those that the log has: all but generated ones."""

    @property
    def sql(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True)
class Slot:
    """A replication slot as it is now."""

    confirmed: int
    """The server has thrown away, or will, what was committed before."""
    current: int
    """The end of the server's log."""
    is_lost: bool
    """The server has thrown away more, because the slot was too far behind."""
    bytes_kept: int
    """Size of the log that the server keeps for the slot."""

    @property
    def bytes_behind(self) -> int:
        return max(0, self.current - self.confirmed)


class Server:
    """A connection for following; each value it gives is in the form that the log has too."""

    def __init__(self, url: sa.URL, where: str) -> None:
        self.address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self.where = where
        try:
            self.connection = psycopg.connect(self.address, autocommit=True)
        except psycopg.OperationalError as error:
            shown = url.render_as_string(hide_password=True)
            reason = str(error).strip().rpartition("\n")[2]
            fix = "check that the database runs and that address, name and password are right"
            raise TarnError(f"cannot open {shown}: {reason}", where, fix) from error
        self.connection.execute(_SESSION)

    def close(self) -> None:
        self.connection.close()

    def check_log(self) -> None:
        """Raise TarnError unless the server keeps a log that can be followed."""
        (level,) = self._row("show wal_level")
        if level != "logical":
            raise TarnError(
                f"the server's wal_level is {level}, and mode: cdc needs logical",
                self.where,
                "as administrator: alter system set wal_level = logical, then restart the server"
                " (where it is rented: rds.logical_replication or its like)",
            )

    def table(self, schema: str | None, name: str) -> Followable | None:
        """A table of the catalog; without a schema the one that its bare name means."""
        wanted = sql.Identifier(schema, name) if schema else sql.Identifier(name)
        found = self.connection.execute(_TABLE, [wanted.as_string(self.connection)]).fetchone()
        if found is None:
            return None
        oid, schema, name, kind, identity = found
        rows = self.connection.execute(_COLUMNS, [oid]).fetchall()
        columns = tuple(Column(*row) for row in rows)
        known = [column.name for column in columns] if identity is None else identity
        return Followable(schema, name, kind, frozenset(known), columns)

    def slot(self, name: str) -> Slot | None:
        found = self.connection.execute(_SLOT, [name]).fetchone()
        return Slot(*found) if found else None

    def publish(self, name: str, tables: Sequence[Followable]) -> None:
        """Let the publication be of just these tables; raises TarnError with the SQL to run."""
        publication = sql.Identifier(name)
        there = self.connection.execute(
            "select puballtables from pg_publication where pubname = %s", [name]
        ).fetchone()
        listed = sql.SQL(", ").join(table.sql for table in tables)
        if there is None:
            made = sql.SQL(
                "create publication {} for table {} with (publish_via_partition_root = true)"
            )
            self._administer(made.format(publication, listed))
        elif not there[0]:
            self._republish(publication, name, tables)

    def published(self, name: str) -> set[tuple[str, str]]:
        """Schema and name of the publication's tables."""
        return set(self.connection.execute(_PUBLISHED, [name]).fetchall())

    def _republish(
        self, publication: sql.Identifier, name: str, tables: Sequence[Followable]
    ) -> None:
        known = self.published(name)
        for table in tables:
            if (table.schema, table.name) not in known:
                more = sql.SQL("alter publication {} add table {}")
                self._administer(more.format(publication, table.sql))
        for schema, table_name in known - {(table.schema, table.name) for table in tables}:
            less = sql.SQL("alter publication {} drop table {}")
            # What is published in vain does no harm.
            with suppress(TarnError):
                self._administer(less.format(publication, sql.Identifier(schema, table_name)))

    def own(self, slot: str) -> str:
        """Name of a temporary slot beside a slot, for this connection alone."""
        return f"{slot}_{self.connection.info.backend_pid}"

    def drop_slot(self, name: str) -> None:
        self.connection.execute("select pg_drop_replication_slot(%s)", [name])

    def advance(self, name: str, lsn: int) -> None:
        """Let the server throw away what was committed before a position."""
        self.connection.execute(
            "select pg_replication_slot_advance(%s, '0/0'::pg_lsn + %s::numeric)", [name, lsn]
        )

    def changes(self, slot: str) -> Iterator[bytes]:
        """Messages from where the slot stands to the end of the log; the slot stays there.

        A temporary copy of it is moved on, so a long log is neither collected at once nor read
        from its beginning again and again.
        """
        copy = self.own(slot)
        (end,) = self._row("select (pg_current_wal_lsn() - '0/0')::bigint")
        self.connection.execute(
            "select pg_copy_logical_replication_slot(%s, %s, true)", [slot, copy]
        )
        self.reached = 0
        while self.reached < end:
            with (
                self.connection.transaction(),
                self.connection.cursor(name="changes", binary=True) as cursor,
            ):
                cursor.itersize = 5_000
                cursor.execute(_CHANGES, [copy, end, CHANGES_AT_ONCE, f'"{slot}"'])
                yield from (row[0] for row in cursor)
            found = self.slot(copy)
            assert found is not None
            if found.confirmed == self.reached:
                break
            self.reached = found.confirmed
        self.drop_slot(copy)

    reached: int
    """Up to where `changes` has come."""

    def rows(
        self, table: Followable, columns: Sequence[str], keys: Mapping[str, Sequence[str]]
    ) -> Iterator[tuple[str | None, ...]]:
        """The rows that have one of these keys now, as text, column by column."""
        types = {column.name: (column.type_oid, column.modifier) for column in table.columns}
        named = sql.SQL(", ").join(sql.Identifier("t", name) for name in columns)
        wanted = sql.SQL(", ").join(
            sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, key)))
            for key in zip(*keys.values(), strict=True)
        )
        numbered = [sql.Identifier(f"k{i}") for i in range(len(keys))]
        same = sql.SQL(" and ").join(
            sql.SQL("t.{} = cast(wanted.{} as {})").format(
                sql.Identifier(key), number, sql.SQL(self._type_name(*types[key]))
            )
            for key, number in zip(keys, numbered, strict=True)
        )
        query = sql.SQL(
            "copy (select {} from {} as t join (values {}) as wanted ({}) on {}) to stdout"
        ).format(named, table.sql, wanted, sql.SQL(", ").join(numbered), same)
        with self.connection.cursor() as cursor, cursor.copy(query) as copy:
            yield from copy.rows()

    def _type_name(self, oid: int, modifier: int) -> str:
        (name,) = self._row("select format_type(%s, %s)", [oid, modifier])
        return str(name)

    def _administer(self, statement: sql.Composed) -> None:
        try:
            self.connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege as error:
            raise TarnError(
                f"this role may not do it itself: {error.diag.message_primary}",
                self.where,
                f"let an administrator run: {statement.as_string(self.connection)}",
            ) from error

    def _row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...]:
        row = self.connection.execute(query.encode(), values or None).fetchone()
        assert row is not None
        return row


class Snapshot:
    """The database at one position of its log, for as long as this is open.

    PostgreSQL exports it while a slot is made: the slot's changes begin exactly where it ends.
    """

    def __init__(self, server: Server, slot: str, *, is_temporary: bool) -> None:
        self.server = server
        separator = "&" if "?" in server.address else "?"
        address = f"{server.address}{separator}replication=database"
        self._connection = pq.PGconn.connect(address.encode())
        kind = "TEMPORARY LOGICAL" if is_temporary else "LOGICAL"
        row = self._execute(f'CREATE_REPLICATION_SLOT "{slot}" {kind} pgoutput EXPORT_SNAPSHOT')
        high, _, low = row[1].partition("/")
        self.lsn = (int(high, 16) << 32) + int(low, 16)
        self.name = row[2]

    def close(self) -> None:
        """End it; a temporary slot goes too."""
        self._connection.finish()

    def _execute(self, command: str) -> list[str]:
        """One row. The command waits for open transactions, and cannot be given a time-out."""
        connection = self._connection
        if connection.status != pq.ConnStatus.OK:
            raise self._refused(connection.error_message.decode())
        connection.send_query(command.encode())
        deadline = time.monotonic() + SLOT_SECONDS
        is_told = False
        while connection.is_busy():
            if time.monotonic() > deadline:
                self.close()
                raise self._waited()
            if not any(select.select([connection.socket], [], [], PATIENCE)) and not is_told:
                log.warning("%s", self._waited())
                is_told = True
            connection.consume_input()
        result = connection.get_result()
        assert result is not None
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._refused(result.error_message.decode())
        return [(result.get_value(0, i) or b"").decode() for i in range(result.nfields)]

    def _refused(self, message: str) -> TarnError:
        self.close()
        reason = " ".join(message.removeprefix("ERROR:").split())
        fix = "see docs/how-to/follow-a-database.md"
        if "permission" in reason or "superuser" in reason or "privilege" in reason:
            (role,) = self.server._row("select quote_ident(current_user)")
            fix = f"let an administrator run: alter role {role} with replication"
        elif "all replication slots are in use" in reason:
            fix = "raise the server's max_replication_slots: a first load takes two for a while"
        return TarnError(f"cannot make a replication slot: {reason}", self.server.where, fix)

    def _waited(self) -> TarnError:
        oldest = self.server.connection.execute(_OLDEST).fetchone()
        what = f", the oldest by process {oldest[0]} since {oldest[1]} UTC" if oldest else ""
        return TarnError(
            f"a replication slot waits for open transactions{what}",
            self.server.where,
            "end them, then load again",
        )


def roles_rights(server: Server) -> Collection[str]:
    """What the role may: `replication`, `create` a publication."""
    rights = server.connection.execute(_RIGHTS).fetchone()
    assert rights is not None
    return [name for name, has in zip(("replication", "create"), rights, strict=True) if has]


_TABLE = """
    select c.oid, n.nspname, c.relname, c.relkind::text,
        case c.relreplident
            when 'f' then null
            when 'n' then '{}'
            else coalesce((
                select array_agg(a.attname::text) from pg_index as i
                join pg_attribute as a on a.attrelid = c.oid and a.attnum = any(i.indkey)
                where i.indrelid = c.oid and i.indisvalid
                    and case c.relreplident when 'd' then i.indisprimary else i.indisreplident end
            ), '{}')
        end
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where c.oid = to_regclass(%s)
"""
_COLUMNS = """
    select attname, atttypid::bigint, atttypmod from pg_attribute
    where attrelid = %s and attnum > 0 and not attisdropped and attgenerated = ''
    order by attnum
"""
_SLOT = """
    select (confirmed_flush_lsn - '0/0')::bigint, (pg_current_wal_lsn() - '0/0')::bigint,
        coalesce(wal_status = 'lost', false),
        coalesce(pg_current_wal_lsn() - restart_lsn, 0)::bigint
    from pg_replication_slots
    where slot_name = %s and plugin = 'pgoutput' and database = current_database()
"""
_PUBLISHED = "select schemaname, tablename from pg_publication_tables where pubname = %s"
_CHANGES = """
    select data from pg_logical_slot_get_binary_changes(
        %s, '0/0'::pg_lsn + %s::numeric, %s, 'proto_version', '1', 'publication_names', %s
    )
"""
_OLDEST = """
    select pid, date_trunc('second', xact_start at time zone 'UTC') from pg_stat_activity
    where backend_xid is not null and pid <> pg_backend_pid() order by xact_start limit 1
"""
_RIGHTS = """
    select rolreplication or rolsuper,
        has_database_privilege(current_database(), 'create')
    from pg_roles where rolname = current_user
"""
