"""Operational views: the current release, with streams as fresh as their last commit.

Raw tables that streams write, and the engine's own records (`tarn.…`), are shown at their latest
version; every other table is as the release holds it. dbt's views are made again over these, so
a model that is a view over a stream knows of an event as soon as it is committed.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.storage import catalog, releases, views
from tarn.storage.duck import (
    Renewal,
    literal,
    opened,
    prepare,
    quoted,
    select_failure,
    select_from,
    show,
)
from tarn.storage.lake import HISTORY, Lake
from tarn.storage.releases import pinned
from tarn.storage.writer import UPKEEP

log = logging.getLogger(__name__)

STREAM_COLUMNS = {"_partition", "_offset", "_sent_at"}
"""A raw table that has them is a stream's."""
_RAW = "raw_"
_LISTED_FILES = 1000
"""Up to so many files a query plans faster over a list of them than by reading the log."""
_UPKEEP_AT_MOST = 10
"""So many commits back, past those of upkeep, the one that added rows is looked for."""
_FILE = "memory.duckdb"
"""A file's name is its database's, and dbt's SQL names the one that is in memory."""
_OPEN_AGAIN = 60.0
"""Seconds after which a table is opened even if no commit follows the one known, which upkeep may
have deleted since."""
_SEARCH_AGAIN = 30.0
"""Seconds between two searches of a distant lake for new tables, each of which costs requests."""


@dataclass(frozen=True)
class Latest:
    """A table at its latest version, as the live views show it."""

    version: int
    committed_at: datetime
    """When rows were last added; UTC. Upkeep, which moves rows to other files, does not count."""
    columns: str
    """Names and types, as JSON."""
    is_stream: bool

    @classmethod
    def of(cls, name: str, table: DeltaTable) -> "Latest":
        """What a table is at."""
        history = table.history(_UPKEEP_AT_MOST)
        last = next((commit for commit in history if UPKEEP not in commit), history[-1])
        at = datetime.fromtimestamp(last["timestamp"] / 1000, UTC)
        return cls(table.version(), at, table.schema().to_json(), _is_stream(name, table))


@dataclass
class _State:
    """What one DuckDB shows."""

    connection: duckdb.DuckDBPyConnection
    release: int
    latest: dict[str, Latest]
    """By `schema.table`."""
    passed_over: set[str]
    """Tables in the same schemas that are no stream's, or cannot be read."""
    opened_at: float
    """When all of them were last opened, on a clock of its own."""


class Live:
    """The operational views of one lake; safe among threads, which take a cursor each."""

    def __init__(self, lake: Lake) -> None:
        self._lake, self._turn, self._renew = lake, threading.Lock(), Renewal(lake)
        self._state: _State | None = None
        self._searched_at = 0.0

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor on what the last refresh saw; close it when done."""
        if self._state is None:
            self.refresh()
        assert self._state
        return self._state.connection.cursor()

    @property
    def streams(self) -> Mapping[str, Latest]:
        """The raw tables of streams by name, as the last refresh saw them."""
        latest = self._state.latest if self._state else {}
        return {name: each for name, each in latest.items() if each.is_stream}

    @property
    def release(self) -> int:
        """The release whose other tables are shown; 0 before the first refresh."""
        return self._state.release if self._state else 0

    def refresh(self) -> bool:
        """Show the latest versions, of one moment in all views. Whether anything is new.

        Raises TarnError when there is no release yet, or the lake cannot be read.
        """
        with self._turn, self._lake.told():
            state = self._state
            if state is None or releases.numbers(self._lake)[-1:] != [state.release]:
                self._state = self._made()
                return True
            self._renew(state.connection)
            tables = self._newer(state)
            if tables is None:
                self._state = self._made()
            elif tables:
                _replace(state, tables)
            return tables is None or bool(tables)

    def _made(self) -> _State:
        """A new DuckDB; cursors of the one before go on undisturbed."""
        return _fill(opened(self._lake), self._lake, _select)

    def _newer(self, state: _State) -> dict[str, DeltaTable] | None:
        """Tables at another version than the one shown; None if views must be made anew."""
        again = time.monotonic() - state.opened_at > _OPEN_AGAIN
        if again:
            state.opened_at, state.passed_over = time.monotonic(), set()
        found = {}
        for name, shown in state.latest.items():
            if again or _has_commit(self._lake, name, shown.version + 1):
                table = _readable(self._lake, name)
                if table is None or table.schema().to_json() != shown.columns:
                    return None
                if table.version() != shown.version:
                    found[name] = table
        return None if self._has_more(state) else found

    def _has_more(self, state: _State) -> bool:
        """Whether a table is to be shown at its latest that was not there before."""
        now = time.monotonic()
        if not self._lake.is_local and now - self._searched_at < _SEARCH_AGAIN:
            return False
        self._searched_at = now
        for name in _candidates(self._lake):
            if name not in state.latest and name not in state.passed_over:
                table = _readable(self._lake, name)
                if table and _is_live(name, table):
                    return True
                state.passed_over.add(name)
        return False


def live(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A cursor on the operational views as of now; close it when done.

    Those of one process share a DuckDB, so that asking again costs milliseconds. Whoever asks
    moves it on for all: keep a Live of your own for a state that only you refresh.
    """
    shared = _SHARED.setdefault(lake.root, Live(lake))
    shared.refresh()
    return shared.cursor()


_SHARED: dict[str, Live] = {}
"""By root of the lake."""


def write(lake: Lake, folder: Path, is_moving: bool) -> Path:
    """Make a DuckDB file of the operational views: as of now, or moving on with each commit."""
    file = folder / _FILE
    with duckdb.connect(str(file)) as connection:
        prepare(connection, lake)
        _fill(connection, lake, _select_moving if is_moving else _select)
    return file


def _fill(
    connection: duckdb.DuckDBPyConnection, lake: Lake, select: Callable[[DeltaTable], str]
) -> _State:
    """Make all views. One that cannot be read leaves the others to their readers."""
    state = _State(connection, _show_release(connection, lake), {}, set(), time.monotonic())
    for name in _candidates(lake):
        try:
            table = lake.table(name)
            if table and _is_live(name, table):
                show(connection, name, select(table))
                state.latest[name] = Latest.of(name, table)
                continue
        except TarnError as failure:
            log.warning("%s", failure)
            show(connection, name, select_failure(failure))
        state.passed_over.add(name)
    _show_views(connection, lake)
    return state


def _show_views(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Make dbt's views; those that cannot be made say why."""
    queries = views.restore(connection, lake)
    made = connection.execute("select schema_name || '.' || view_name from duckdb_views()")
    missing = queries.keys() - {name for (name,) in made.fetchall()}
    reasons = {name: _reason(connection, queries[name]) for name in missing}
    for name, reason in reasons.items():
        show(connection, name, select_failure(TarnError(reason, name)))


def _reason(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Why a query fails."""
    try:
        connection.execute(f"explain {sql}")
    except duckdb.Error as error:
        return str(error).partition("\n")[0]
    return "its query could not be read when it was made"


def _show_release(connection: duckdb.DuckDBPyConnection, lake: Lake) -> int:
    """Show the tables of the current release as its catalog does, which has found them before;
    hot ones are read in the lake. Gives its number."""
    with duckdb.connect(str(catalog.ensure(lake)), read_only=True) as kept:
        made = kept.execute("select schema_name, sql from duckdb_views() where not internal")
        for schema, sql in made.fetchall():
            connection.execute(f"create schema if not exists {quoted(schema)}; {sql}")
        row = kept.execute("select number from tarn.catalog").fetchone()
    assert row
    for name, pin in releases.read(lake, row[0]).tables.items():
        if lake.policy.of(name).tier == "hot":
            show(connection, name, select_from(pinned(lake, name, pin)))
    return int(row[0])


def _replace(state: _State, tables: Mapping[str, DeltaTable]) -> None:
    """Show other versions of tables, all at once to every cursor."""
    found = {name: Latest.of(name, table) for name, table in tables.items()}
    state.connection.execute("begin")
    try:
        for name, table in tables.items():
            show(state.connection, name, _select(table))
    except BaseException:
        state.connection.execute("rollback")
        raise
    state.connection.execute("commit")
    state.latest = {**state.latest, **found}


def _select(table: DeltaTable) -> str:
    return select_from(table, _LISTED_FILES)


def _select_moving(table: DeltaTable) -> str:
    return f"select * from delta_scan({literal(table.table_uri)})"


def _candidates(lake: Lake) -> list[str]:
    return [name for name in lake.folders() if name.startswith((_RAW, HISTORY))]


def _readable(lake: Lake, name: str) -> DeltaTable | None:
    """The table at its latest; None also if it is unsound, which its view will tell."""
    try:
        return lake.table(name)
    except TarnError as failure:
        log.debug("%s", failure)
        return None


def _is_live(name: str, table: DeltaTable) -> bool:
    return name.startswith(HISTORY) or _is_stream(name, table)


def _is_stream(name: str, table: DeltaTable) -> bool:
    return name.startswith(_RAW) and {f.name for f in table.schema().fields} >= STREAM_COLUMNS


def _has_commit(lake: Lake, name: str, version: int) -> bool:
    """Whether the log holds that version: one look, however long the log is."""
    try:
        lake.objects.head(f"{name.replace('.', '/')}/_delta_log/{version:020d}.json")
    except FileNotFoundError:
        return False
    return True
