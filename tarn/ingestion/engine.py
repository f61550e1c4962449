"""Loads systems side by side. One that fails does not stop the others."""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

import dlt
from rich.console import Console

from tarn.errors import TarnError
from tarn.ingestion.alerts import alert
from tarn.ingestion.declarations import FOLDER, Declared, declared
from tarn.ingestion.intake import Load
from tarn.ingestion.landed import Desk
from tarn.ingestion.ledger import ALL, Counts, Status, TableLoad, record
from tarn.ingestion.load import load_table
from tarn.ingestion.masking import causes, message
from tarn.ingestion.options import EVERYTHING, Options
from tarn.ingestion.quarantine import take_in_left
from tarn.ingestion.replay import finish_left
from tarn.ingestion.rows import Loaded
from tarn.ingestion.sources import Source
from tarn.ingestion.sources.http import http_failure
from tarn.ingestion.streams.transports import TRANSPORTS
from tarn.ingestion.timetable import Timetable
from tarn.ingestion.workspace import alone, streamer, workspace
from tarn.progress import Progress, progress
from tarn.settings import Settings, settings
from tarn.storage.clock import new_name, now
from tarn.storage.lake import Lake
from tarn.strict_yaml import nearest

log = logging.getLogger(__name__)

Kind: TypeAlias = Callable[[Declared, Settings], Source]

SIDE_BY_SIDE = 4
INTERRUPTED = 130
_SOURCES = {
    "sql_database": "cdc:database",
    "files": "files.source:Files",
    "rest_api": "rest_api.source:RestApi",
    "delta_sharing": "delta_sharing:DeltaSharing",
    "media": "media.source:Media",
    "table": "table.source:ForeignTables",
    "webhook": "webhook:Webhook",
}
"""Class of each kind, imported only where a system needs it: each brings its drivers."""
_STREAM = "stream:StreamSource"
"""Looks at a stream of any kind; how it lands is the consumer's business."""


@dataclass(frozen=True)
class LoadResult:
    """How the load of one system went."""

    system: str
    load_id: str
    tables: tuple[TableLoad, ...]
    seconds: float
    error: str | None = None
    """Why the system could not be opened at all; its tables then say so too."""

    @property
    def failed(self) -> bool:
        return any(table.status == "failed" for table in self.tables)

    @property
    def rows(self) -> Counts:
        """Of all tables together."""
        counts = [table.counts for table in self.tables]
        return Counts(
            sum(each.read for each in counts),
            sum(each.accepted for each in counts),
            sum(each.quarantined for each in counts),
            sum(each.deduplicated for each in counts),
        )


def ingest(
    systems: Sequence[str] = (), console: Console | None = None, options: Options = EVERYTHING
) -> list[LoadResult]:
    """Load the systems named, or all that are declared, and show progress on the console.

    Raises TarnError for a mistake in a declaration, before anything is loaded. What goes wrong
    later is in the results: nothing was then written to the tables concerned. Ctrl-C ends the
    process.
    """
    home = settings()
    chosen = _chosen(declared(home.project_dir / FOLDER, systems), options)
    lake = replace(Lake.open(home), is_rehearsal=options.dry_run)
    quiet_dlt()
    # Here, not side by side: two threads that import pandas at once fail.
    kinds = {each.system.kind: source_class(each.system.kind) for each in chosen}
    with (
        progress(console or Console(quiet=True)) as shown,
        workspace(home.work_dir) as folder,
        closing(Desk(lake, folder)) as desk,
    ):
        run = _Run(home, desk, folder, shown, options)
        pool = ThreadPoolExecutor(SIDE_BY_SIDE)
        loads = [pool.submit(run.ingest, each, kinds[each.system.kind]) for each in chosen]
        try:
            return [load.result() for load in loads]
        except KeyboardInterrupt:
            # Threads cannot be stopped, and need not be: a load that is killed is repeated.
            shown.__exit__(None, None, None)
            os._exit(INTERRUPTED)
        finally:
            pool.shutdown()


@dataclass(frozen=True)
class _Run:
    """One call of `ingest`: what its systems share."""

    home: Settings
    desk: Desk
    folder: Path
    shown: Progress
    options: Options

    def ingest(self, wanted: Declared, kind: Kind) -> LoadResult:
        with alone(self.home.work_dir, wanted.name):
            began = perf_counter()
            folder = self.folder / wanted.name
            load = Load(self.desk, new_name(), now(), folder, wanted.name, self.options)
            load.folder.mkdir()
            if wanted.system.kind in TRANSPORTS:
                tables, error = self._streamed(load, wanted)
            else:
                tables, error = self._tables(load, wanted, kind)
                timetable = Timetable.of(wanted)
                due_at = timetable.before(load.at) if timetable else None
                record(self.desk, load.load_id, tables, due_at)
            if not self.options.dry_run:
                alert(self.home, self.desk.lake, tables, load.at)
            seconds = perf_counter() - began
            return LoadResult(wanted.name, load.load_id, tuple(tables), seconds, error)

    def _tables(
        self, load: Load, wanted: Declared, kind: Kind
    ) -> tuple[list[TableLoad], str | None]:
        """All tables, or why the system could not be opened."""
        try:
            if not self.options.dry_run:
                take_in_left(self.desk, wanted.name, load.transaction)
                finish_left(self.desk, wanted.name)
            wanted = wanted.resolved(self.home)
            source = kind(wanted, self.home)
            names = _tables(wanted.name, list(source.tables), self.options)
        except Exception as failure:
            error = told(failure, wanted, ("connection",), ())
            self.shown.task(wanted.name).end(f"failed: {error}")
            asked = _asked(wanted.name, self.options) or list(wanted.system.tables) or [ALL]
            return [_failed(wanted.name, name, load.at, error) for name in asked], error
        with closing(source):
            loads = [self._table(load, source, wanted, table) for table in names]
        return [table for tables in loads for table in tables], None

    def _streamed(self, load: Load, wanted: Declared) -> tuple[list[TableLoad], str | None]:
        """What waits of a stream, or why the system could not be opened."""
        # It loads webhooks by this module.
        from tarn.ingestion.streams.running import once

        task = self.shown.task(wanted.name)
        try:
            if left_out := self._left_out(wanted):
                task.end(left_out)
                return [], None
            take_in_left(self.desk, wanted.name, load.transaction)
            finish_left(self.desk, wanted.name)
            resolved = wanted.resolved(self.home)
            tables = once(resolved, self.desk, self.home, load.folder)
        except Exception as failure:
            log.debug("%s", wanted.name, exc_info=True)
            error = told(failure, wanted, ("connection",), ())
            task.end(f"failed: {error}")
            failed = [_failed(wanted.name, each, load.at, error) for each in wanted.system.tables]
            record(self.desk, load.load_id, failed)
            return failed, error
        task.end(outcome(tables))
        return tables, None

    def _left_out(self, wanted: Declared) -> str | None:
        """Why a stream is not loaded as asked; raises TarnError if that was asked of it alone."""
        options = self.options
        if options.full_refresh or options.backfill:
            raise TarnError(
                "messages that have landed are not read again",
                f"{wanted.name} ({wanted.file.where('kind')})",
                "load without --full-refresh or --backfill",
            )
        if options.dry_run or options.limit or options.tables:
            return "skipped: a stream is read as a whole; tarn source preview shows its messages"
        if process := streamer(self.home.work_dir, wanted.name):
            return f"skipped: process {process} streams it"
        return None

    def _table(self, load: Load, source: Source, wanted: Declared, table: str) -> list[TableLoad]:
        """A table and its children."""
        task = self.shown.task(f"{wanted.name}.{table}")
        began = now()
        is_asked = bool(self.options.tables)
        if self.options.backfill and not source.tables[table].cursor and not is_asked:
            task.end("skipped: it has no cursor, so nothing tells which rows a span has")
            return []
        try:
            loaded = load_table(load, source, wanted, table, task)
        except Exception as failure:
            log.debug("%s.%s", wanted.name, table, exc_info=True)
            error = told(failure, wanted, ("tables", table), source.secrets)
            task.end(f"failed: {error}")
            return [_failed(wanted.name, table, began, error)]
        tables = [_result(each, wanted.name, began) for each in loaded]
        task.end(outcome(tables))
        return tables


def _chosen(systems: Sequence[Declared], options: Options) -> list[Declared]:
    """The systems that may have one of the tables asked for."""
    if not options.tables:
        return list(systems)
    if len(systems) > 1:
        known = [f"{each.name}.{table}" for each in systems for table in each.system.tables]
        for table in options.tables:
            if not any(_may_have(each, table) for each in systems):
                what = f"no system has a table {table!r}{nearest(table, known)}"
                raise TarnError(what, "--table", "name it as system.table")
        systems = [
            each for each in systems if any(_may_have(each, table) for table in options.tables)
        ]
    return list(systems)


def _may_have(wanted: Declared, table: str) -> bool:
    """Of a pattern only the system itself knows which tables it stands for."""
    system, _, name = table.rpartition(".")
    return system == wanted.name if system else name in wanted.system.tables


def _asked(system: str, options: Options) -> list[str]:
    """The tables asked for that could be this system's."""
    named = (table.rpartition(".") for table in options.tables)
    return [table for prefix, _, table in named if prefix in ("", system)]


def _tables(system: str, known: Sequence[str], options: Options) -> list[str]:
    """Those to load of the tables that the system has."""
    asked = _asked(system, options)
    chosen = [table for table in known if table in asked or not options.tables]
    for table in asked:
        if table not in known and (f"{system}.{table}" in options.tables or not chosen):
            raise TarnError(f"{system} has no table {table!r}{nearest(table, known)}", "--table")
    return chosen


def source_class(kind: str) -> Kind:
    """What opens a system of a kind; imports its drivers."""
    module, _, name = _SOURCES.get(kind, _STREAM).partition(":")
    source: Kind = getattr(import_module(f"tarn.ingestion.sources.{module}"), name)
    return source


def _result(loaded: Loaded, system: str, began: datetime) -> TableLoad:
    status: Status = "loaded" if loaded.counts.moved else "unchanged"
    notes = (*(change.told for change in loaded.changes), *loaded.notes)
    return TableLoad(
        system,
        loaded.table,
        status,
        loaded.counts,
        began,
        now(),
        notes=notes,
        columns=loaded.columns,
        delivered=loaded.delivered,
        changes=loaded.changes,
    )


def _failed(system: str, table: str, began: datetime, error: str) -> TableLoad:
    return TableLoad(system, table, "failed", Counts(), began, now(), error)


def told(failure: Exception, wanted: Declared, at: Sequence[str], secrets: Collection[str]) -> str:
    """One message: what, where, and what to do, without secrets."""
    where = f"{wanted.name} ({wanted.file.where(*at)})"
    is_told = any(isinstance(cause, TarnError) for cause in causes(failure))
    return message(failure if is_told else http_failure(failure, where) or failure, secrets)


def outcome(tables: Sequence[TableLoad]) -> str:
    """A table and its children in a few words."""
    is_unchanged = all(table.status == "unchanged" for table in tables)
    words = ["nothing new"] if is_unchanged else []
    for name in ("accepted", "quarantined", "deduplicated"):
        rows = sum(getattr(table.counts, name) for table in tables)
        if rows and not is_unchanged:
            words.append(f"{rows:,} {name}")
    words += [note for table in tables for note in table.notes]
    return ", ".join(words)


def quiet_dlt() -> None:
    """dlt calls its makers and logs by default, addresses included."""
    dlt.config["runtime.dlthub_telemetry"] = False
    dlt.config["runtime.log_level"] = "CRITICAL"
    logging.getLogger("dlt").setLevel(logging.CRITICAL)
