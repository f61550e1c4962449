"""Which events have come before: of those with the same key only the first becomes a row.

Hashes propose, and the keys themselves decide: a proposal is looked up in the lake, in the commits
in which that hash came. So no event is lost to a collision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tarn.ingestion.landed import LOADED_AT, Desk
from tarn.ingestion.streams.hashes import IN_MEMORY, Hashes, Run, in_order
from tarn.storage.duck import quoted, select_from

MOST_HASHES = 256_000_000
"""Of one table, 16 bytes each, on disk; of what is older only the lake knows."""
_LARGEST_RUN = 16_000_000
_SLICES = 8
"""Parts of the time for which keys are known; each is forgotten as a whole."""
_FEW = 1_000
"""Commits that are named one by one when the lake is asked."""
_SECOND = timedelta(microseconds=1)
_FOREVER = 2**62


@dataclass(frozen=True)
class Met:
    """What is known of some rows before they are committed."""

    fresh: pa.Array
    """Indices of the rows that are to be kept."""
    hashes: Hashes
    """Of those rows."""


class Known:
    """The keys of one table's events of the last while."""

    def __init__(
        self, desk: Desk, name: str, keys: Sequence[str], within: timedelta, *, lasting: bool
    ) -> None:
        """lasting: what the lake held at the start is not forgotten; it may come again whenever."""
        self.desk, self.name, self.keys, self.lasting = desk, name, tuple(keys), lasting
        self.within = within // _SECOND
        self._runs: list[Run] = []
        self._kept: list[Run] = []
        self._only_in_lake: tuple[int, int] | None = None
        """From and to when there are more keys than there is room for."""

    def fill(self, until: int) -> None:
        """Learn from the lake what was loaded in the time before `until`."""
        self._runs, self._kept, self._only_in_lake = [], [], None
        table = self.desk.lake.table(self.name)
        if table is None:
            return
        since = until - self.within
        bounds = [*range(since, until, max(self.within // _SLICES, 1)), _FOREVER]
        found: list[Run] = []
        with self.desk.session() as connection:
            for begin, end in reversed(list(pairwise(bounds))):
                rows = f"""({select_from(table)})
                    where {LOADED_AT} >= make_timestamp({begin})
                    and {LOADED_AT} < make_timestamp({end})"""
                count = _count(connection, rows)
                if _size(found) + count > MOST_HASHES:
                    self._only_in_lake = (since, min(end, until))
                    break
                if count:
                    found.insert(0, self._run(connection, rows, count))
        if self.lasting:
            self._kept = found
        else:
            self._runs = found

    def _run(self, connection: duckdb.DuckDBPyConnection, rows: str, count: int) -> Run:
        sql = f"select {self._hash} as h, epoch_us({LOADED_AT}) as at from {rows} order by h"
        reader = connection.execute(sql).to_arrow_reader(IN_MEMORY)
        parts = ((each["h"].to_numpy(), each["at"].to_numpy()) for each in reader)
        return Run.of(parts, count, self.desk.folder)

    def meet(self, rows: pa.RecordBatch, at: int) -> Met:
        """Which rows of a batch are the first of their key. `at`: when they are loaded."""
        self._forget(at - self.within)
        hashes = self._hashes(rows)
        twice = self._again(rows, hashes)
        twice |= self._in_lake(rows, hashes, at - self.within, twice)
        fresh = np.flatnonzero(~twice)
        return Met(pa.array(fresh), hashes[fresh])

    def add(self, hashes: Hashes, at: int) -> None:
        """These are in the lake now."""
        if not len(hashes):
            return
        hashes, instants = in_order(hashes, np.full(len(hashes), at, np.int64))
        self._runs.append(Run(hashes, instants, at, at))
        slice_ = self.within // _SLICES
        while len(self._runs) > 1:
            before, last = self._runs[-2:]
            if (
                len(before.hashes) > 2 * len(last.hashes)
                or last.last - before.first > slice_
                or _size([before, last]) > _LARGEST_RUN
            ):
                break
            self._runs[-2:] = [before.merged(last, self.desk.folder)]
        while len(self._runs) > 1 and _size(self._runs) > MOST_HASHES:
            oldest = self._runs.pop(0)
            since = self._only_in_lake[0] if self._only_in_lake else oldest.first
            self._only_in_lake = (since, oldest.last)

    def _forget(self, before: int) -> None:
        self._runs = [run for run in self._runs if run.last >= before]
        if self._only_in_lake and self._only_in_lake[1] < before:
            self._only_in_lake = None

    @property
    def _hash(self) -> str:
        return f"hash({', '.join(quoted(key) for key in self.keys)})"

    def _hashes(self, rows: pa.RecordBatch) -> Hashes:
        with self.desk.session() as connection:
            connection.register("incoming", rows.select(self.keys))
            found = connection.execute(f"select {self._hash} as h from incoming").fetchnumpy()
        return np.asarray(found["h"], np.uint64)

    def _again(self, rows: pa.RecordBatch, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Rows whose key is in the batch before."""
        again = np.zeros(len(hashes), np.bool_)
        order = np.argsort(hashes, kind="stable")
        same = hashes[order][1:] == hashes[order][:-1]
        shared = np.zeros(len(hashes), np.bool_)
        shared[order[1:]] |= same
        shared[order[:-1]] |= same
        at = np.flatnonzero(shared)
        seen: set[tuple[object, ...]] = set()
        listed = rows.select(self.keys).take(pa.array(at))
        for i, key in zip(at, zip(*listed.to_pydict().values(), strict=True), strict=True):
            again[i] = key in seen
            seen.add(key)
        return again

    def _in_lake(
        self, rows: pa.RecordBatch, hashes: Hashes, since: int, skipped: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Rows whose key the lake has."""
        proposed = np.zeros(len(hashes), np.bool_)
        instants: set[int] = set()
        new = np.flatnonzero(~skipped)
        new = new[np.argsort(hashes[new])]
        sought = hashes[new]
        for run in (*self._kept, *self._runs):
            here, at = run.find(sought)
            proposed[new[here]] = True
            instants |= at
        if self._only_in_lake is not None:
            proposed = ~skipped
        found = np.zeros(len(hashes), np.bool_)
        candidate = np.flatnonzero(proposed)
        if len(candidate):
            candidates = rows.select(self.keys).take(pa.array(candidate))
            found[candidate[self._looked_up(candidates, instants, since)]] = True
        return found

    def _looked_up(self, keys: pa.RecordBatch, instants: set[int], since: int) -> list[int]:
        """Which of some keys are in the lake, loaded at one of these instants."""
        table = self.desk.lake.table(self.name)
        if table is None:
            return []
        if not self.lasting:
            instants = {each for each in instants if each >= since}
        if not instants and self._only_in_lake is None:
            return []
        numbered = keys.append_column("tarn row", pa.arange(0, keys.num_rows))
        same = " and ".join(f"l.{quoted(key)} = c.{quoted(key)}" for key in self.keys)
        with self.desk.session() as connection:
            connection.register("candidates", numbered)
            sql = f"""
                select "tarn row" from candidates as c where exists (
                    select 1 from ({select_from(table)}) as l
                    where {same} and ({self._times(instants, since)})
                )
            """
            return [row[0] for row in connection.execute(sql).fetchall()]

    def _times(self, instants: set[int], since: int) -> str:
        """Condition on the lake's rows: when they were loaded."""
        when = []
        if self._only_in_lake is not None:
            start, end = max(self._only_in_lake[0], since), self._only_in_lake[1]
            when.append(f"l.{LOADED_AT} between make_timestamp({start}) and make_timestamp({end})")
        if len(instants) > _FEW:
            start, end = min(instants), max(instants)
            when.append(f"l.{LOADED_AT} between make_timestamp({start}) and make_timestamp({end})")
        elif instants:
            named = ", ".join(f"make_timestamp({each})" for each in sorted(instants))
            when.append(f"l.{LOADED_AT} in ({named})")
        return " or ".join(when)


def _size(runs: Sequence[Run]) -> int:
    return sum(len(run.hashes) for run in runs)


def _count(connection: duckdb.DuckDBPyConnection, rows: str) -> int:
    counted = connection.execute(f"select count(*) from {rows}").fetchone()
    return int(counted[0]) if counted else 0
