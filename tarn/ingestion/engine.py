"""Loads systems side by side. One that fails does not stop the others."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter, time_ns
from typing import Any, TypeAlias

import dlt
from rich.console import Console

from tarn.errors import TarnError
from tarn.ingestion.declarations import FOLDER, Declared, declared
from tarn.ingestion.intake import Load
from tarn.ingestion.landed import Desk
from tarn.ingestion.ledger import Counts, Status, TableLoad, now, record
from tarn.ingestion.load import Loaded, load_table
from tarn.ingestion.masking import causes, message
from tarn.ingestion.quarantine import take_in_left
from tarn.ingestion.sources import Source
from tarn.ingestion.sources.http import http_failure
from tarn.progress import Progress, progress
from tarn.settings import Settings, settings
from tarn.storage.lake import Lake

log = logging.getLogger(__name__)

Kind: TypeAlias = Callable[[Declared, Settings], Source]

SIDE_BY_SIDE = 4
_SOURCES = {
    "sql_database": "sql_database:SqlDatabase",
    "files": "files:Files",
    "rest_api": "rest_api:RestApi",
    "delta_sharing": "delta_sharing:DeltaSharing",
}
"""Class of each kind, imported only where a system needs it: each brings its drivers."""


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


def ingest(systems: Sequence[str] = (), console: Console | None = None) -> list[LoadResult]:
    """Load the systems named, or all that are declared, and show progress on the console.

    Raises TarnError for a mistake in a declaration, before anything is loaded. What goes wrong
    later is in the results: nothing was then written to the tables concerned.
    """
    home = settings()
    chosen = declared(home.project_dir / FOLDER, systems)
    lake = Lake.open(home)
    _quiet_dlt()
    # Here, not side by side: two threads that import pandas at once fail.
    kinds = {each.system.kind: _source(each.system.kind) for each in chosen}
    with (
        progress(console or Console(quiet=True)) as shown,
        _workspace(home) as folder,
        closing(Desk(lake, folder)) as desk,
        ThreadPoolExecutor(SIDE_BY_SIDE) as pool,
    ):
        running = [
            pool.submit(
                _ingest, each, kinds[each.system.kind], home, desk, folder / each.name, shown
            )
            for each in chosen
        ]
        return [each.result() for each in running]


def _ingest(
    wanted: Declared, kind: Kind, home: Settings, desk: Desk, folder: Path, shown: Progress
) -> LoadResult:
    with _alone(home.work_dir / f"ingestion-{wanted.name}.lock"):
        return _ingest_alone(wanted, kind, home, desk, folder, shown)


def _ingest_alone(
    wanted: Declared, kind: Kind, home: Settings, desk: Desk, folder: Path, shown: Progress
) -> LoadResult:
    began = perf_counter()
    load = Load(desk, new_load_id(), now(), folder)
    load.folder.mkdir()
    error = None
    take_in_left(desk, wanted.name, load.transaction)
    try:
        wanted = wanted.resolved(home)
        source = kind(wanted, home)
    except Exception as failure:
        error = _told(failure, wanted, "connection", ())
        tables = [_failed(wanted.name, table, error, load) for table in wanted.system.tables]
        shown.task(wanted.name).end(f"failed: {error}")
    else:
        tables = [
            loaded
            for table in wanted.system.tables
            for loaded in _load(load, source, wanted, table, shown)
        ]
    record(desk, load.load_id, tables)
    return LoadResult(wanted.name, load.load_id, tuple(tables), perf_counter() - began, error)


def _source(kind: str) -> Kind:
    module, _, name = _SOURCES[kind].partition(":")
    source: Kind = getattr(import_module(f"tarn.ingestion.sources.{module}"), name)
    return source


def _load(
    load: Load, source: Source, wanted: Declared, table: str, shown: Progress
) -> list[TableLoad]:
    task = shown.task(f"{wanted.name}.{table}")
    began = now()
    try:
        loaded = load_table(load, source, wanted, table, task)
    except Exception as failure:
        log.debug("%s.%s", wanted.name, table, exc_info=True)
        error = _told(failure, wanted, f"tables.{table}", source.secrets)
        task.end(f"failed: {error}")
        return [TableLoad(wanted.name, table, "failed", Counts(), began, now(), error)]
    tables = [_result(each, wanted.name, began) for each in loaded]
    task.end(outcome(tables))
    return tables


def _result(loaded: Loaded, system: str, began: Any) -> TableLoad:
    status: Status = "loaded" if loaded.counts.moved else "unchanged"
    return TableLoad(system, loaded.table, status, loaded.counts, began, now(), notes=loaded.notes)


def _failed(system: str, table: str, error: str, load: Load) -> TableLoad:
    return TableLoad(system, table, "failed", Counts(), load.at, now(), error)


def _told(failure: Exception, wanted: Declared, at: str, secrets: Any) -> str:
    """One message: what, where, and what to do, without secrets."""
    where = f"{wanted.name} ({wanted.file.where(*at.split('.'))})"
    is_told = any(isinstance(cause, TarnError) for cause in causes(failure))
    return message(failure if is_told else http_failure(failure, where) or failure, secrets)


def outcome(tables: Sequence[TableLoad]) -> str:
    """A table and its children in a few words."""
    if all(table.status == "unchanged" for table in tables):
        return "nothing new"
    words = []
    for name in ("accepted", "quarantined", "deduplicated"):
        if rows := sum(getattr(table.counts, name) for table in tables):
            words.append(f"{rows:,} {name}")
    words += [note for table in tables for note in table.notes]
    return ", ".join(words) or "empty"


def new_load_id() -> str:
    """A name that sorts by time: hexadecimal milliseconds, then random."""
    return f"{time_ns() // 1_000_000:012x}-{os.urandom(5).hex()}"


class _workspace:
    """A folder for this process alone; those that killed processes left are removed."""

    def __init__(self, home: Settings) -> None:
        self.base = home.work_dir / "ingestion"
        self.folder = self.base / str(os.getpid())

    def __enter__(self) -> Path:
        self.base.mkdir(parents=True, exist_ok=True)
        for left in self.base.iterdir():
            if left == self.folder or not _is_running(left.name):
                shutil.rmtree(left, ignore_errors=True)
        self.folder.mkdir()
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Wait until no other process loads the system; a lock ends with its process."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _quiet_dlt() -> None:
    """dlt calls its makers and logs by default, addresses included."""
    dlt.config["runtime.dlthub_telemetry"] = False
    dlt.config["runtime.log_level"] = "CRITICAL"
    logging.getLogger("dlt").setLevel(logging.CRITICAL)
