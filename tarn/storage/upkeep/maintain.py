"""`tarn maintain`: compact, cool, checkpoint, publish, expire releases, vacuum; in that order.

Each step finds out from the lake what is left to do, so a run that dies at any point is finished
by the next one. Nothing that a kept release reads is ever deleted, and an expired release's
files go only when the grace has passed: somebody may just be rolling back to it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Protocol

import duckdb
import obstore
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from obstore.exceptions import BaseError

from tarn.errors import TarnError
from tarn.storage import catalog, readers, redis_copy, releases
from tarn.storage.datafiles import Reader, why_untouchable
from tarn.storage.disk import disk_failure
from tarn.storage.lake import OWN_SCHEMA, Lake
from tarn.storage.policy import Releases
from tarn.storage.releases import Pin, Release
from tarn.storage.upkeep import vacuum
from tarn.storage.upkeep.rewrite import Outcome, rewrite
from tarn.storage.upkeep.tiers import Kind, work
from tarn.storage.upkeep.vacuum import Garbage
from tarn.storage.writer import UPKEEP

log = logging.getLogger(__name__)

EXPIRED = f"{OWN_SCHEMA}/expired"
"""Releases that are kept no more, until the grace has passed."""
CHECKPOINT_AFTER = 10
"""Commits since the last checkpoint from which on another is worth its space."""
FAILURES = (TarnError, DeltaError, OSError, BaseError, pa.ArrowException, duckdb.Error)
"""What one table may come to; the others are maintained all the same."""
_PUBLISH_ATTEMPTS = 5
_UPKEEP_COMMITS = 50
"""So far back a table's history is searched for the version that a release pins."""


@dataclass(frozen=True)
class TableUpkeep:
    """What was done to one table; in a dry run, what would be."""

    name: str
    done: Mapping[Kind, Outcome] = field(default_factory=dict)
    """In a dry run without what comes after."""
    garbage: Garbage = field(default_factory=Garbage)
    checkpoint: bool = False
    note: str | None = None
    """Why something was left alone."""
    failed: bool = False
    """Whether that is something to look after."""


@dataclass(frozen=True)
class Upkeep:
    """What a run came to."""

    tables: Sequence[TableUpkeep]
    lake: Garbage
    """What dead processes had left outside of tables."""
    expired: Sequence[int]
    """Numbers of releases."""
    release: Release | None
    """The one that shows readers the new files."""

    @property
    def files(self) -> int:
        """Files removed, without those of logs."""
        return sum(len(garbage.files) for garbage in self._garbage)

    @property
    def log_entries(self) -> int:
        return sum(len(garbage.log) for garbage in self._garbage)

    @property
    def size(self) -> int:
        """Bytes removed."""
        return sum(garbage.size for garbage in self._garbage)

    @property
    def _garbage(self) -> list[Garbage]:
        return [*(table.garbage for table in self.tables), self.lake]


class Watcher(Protocol):
    """Is told how far a run is."""

    def begin(self, name: str) -> None:
        """A table's turn."""

    def end(self, table: TableUpkeep) -> None:
        """That table is done."""


def maintain(
    lake: Lake,
    names: Sequence[str] = (),
    *,
    dry_run: bool = False,
    now: datetime | None = None,
    watcher: Watcher | None = None,
) -> Upkeep:
    """Keep the named tables, or the whole lake, as the policy says; with dry_run only tell.

    now is the moment that ages are counted from.
    """
    now = now or datetime.now(UTC)
    everything = lake.folders()
    if unknown := [name for name in names if name not in everything]:
        raise TarnError(
            f"no table {', '.join(unknown)} in the lake", lake.root, "see tarn release show"
        )
    chosen = list(names) or everything
    rewritten = {name: _rewrite_table(lake, name, now, dry_run, watcher) for name in chosen}
    release = None if dry_run else publish_rewritten(lake)
    gone = [] if names else expire(lake, now, dry_run)
    grace = lake.policy.vacuum_after
    pinned = pinned_versions(lake, now)
    tables = [
        _vacuum_table(lake, rewritten[name], pinned.get(name, set()), now, grace, dry_run)
        for name in chosen
    ]
    rest = Garbage() if names else vacuum.of_lake(lake, now, grace)
    if not dry_run:
        vacuum.remove(lake, None, rest)
        if not names:
            _forget_expired(lake, now - grace)
            if current := releases.current(lake):
                redis_copy.publish(lake, current)
    return Upkeep(tables, rest, gone, release)


def publish_rewritten(lake: Lake) -> Release | None:
    """Let readers see rewritten files: same rows, new version. None if there is nothing new.

    A table moves only when every commit since its pinned version is upkeep's own.
    """
    for attempt in range(1, _PUBLISH_ATTEMPTS + 1):
        before = releases.current(lake)
        if before is None:
            return None
        moved = {
            name: new
            for name, pin in before.tables.items()
            if (new := _rewritten_pin(lake, name, pin)) is not None
        }
        if not moved:
            # Whoever published it may have been killed before the catalog showed it.
            if catalog.path(lake).exists():
                catalog.ensure(lake)
            return None
        told = f"rewrote {', '.join(sorted(moved))}" if len(moved) < 4 else f"{len(moved)} tables"
        try:
            release = releases.publish(lake, {**before.tables, **moved}, before, {"upkeep": told})
        except TarnError:
            if attempt == _PUBLISH_ATTEMPTS:
                raise
            continue
        catalog.build(lake, release)
        return release
    raise AssertionError("unreachable")


def expire(lake: Lake, now: datetime, dry_run: bool = False) -> list[int]:
    """Forget the releases that the policy keeps no more; their numbers, oldest first."""
    gone = expired(list(releases.releases(lake)), lake.policy.releases, now)
    for number in [] if dry_run else gone:
        content = lake.objects.get(f"{releases.FOLDER}/{number:08d}.json").bytes()
        obstore.put(lake.objects, f"{EXPIRED}/{number:08d}.json", content)
        releases.forget(lake, number)
    return gone


def expired(kept: Sequence[Release], policy: Releases, now: datetime) -> list[int]:
    """Of the releases kept, newest first, those that go.

    The current one stays, and the one it went back to: rolling back again needs it.
    """
    if not kept:
        return []
    stay = {release.number for release in kept[: policy.at_least]}
    stay |= {int(number) for number in [kept[0].made_by.get("rollback_to")] if number}
    oldest = now - policy.keep
    return sorted(
        release.number
        for release in kept
        if release.number not in stay and datetime.fromisoformat(release.made_at) < oldest
    )


def pinned_versions(lake: Lake, now: datetime) -> dict[str, set[int]]:
    """By table, the versions that kept releases read, just expired ones, and builds under way."""
    reads = list(readers.versions_read(lake, now - lake.policy.vacuum_after))
    for release in releases.releases(lake):
        reads.append({name: pin.version for name, pin in release.tables.items()})
    for entry in lake.files(EXPIRED):
        tables = json.loads(bytes(lake.objects.get(entry["path"]).bytes()))["tables"]
        reads.append({name: pin["version"] for name, pin in tables.items()})
    pinned: dict[str, set[int]] = {}
    for name, version in chain.from_iterable(read.items() for read in reads):
        pinned.setdefault(name, set()).add(version)
    return pinned


def _forget_expired(lake: Lake, before: datetime) -> None:
    for entry in lake.files(EXPIRED):
        if entry["last_modified"] < before:
            vacuum.delete(lake, entry["path"])


def _rewrite_table(
    lake: Lake,
    name: str,
    now: datetime,
    dry_run: bool,
    watcher: Watcher | None,
) -> TableUpkeep:
    if watcher:
        watcher.begin(name)
    try:
        result = rewritten(lake, name, now, dry_run)
    except FAILURES as error:
        result = TableUpkeep(name, note=_told(error, name), failed=True)
    if watcher:
        watcher.end(result)
    return result


def rewritten(lake: Lake, name: str, now: datetime, dry_run: bool = False) -> TableUpkeep:
    """Compact and cool one table, as its policy says."""
    table = lake.table(name)
    if table is None:
        return TableUpkeep(name)
    if reason := why_untouchable(table):
        return TableUpkeep(name, note=f"not compacted: {reason}")
    works = work(table, Reader.of(lake, name), lake.policy.of(name), now, ("cool", "compact"))
    if dry_run:
        planned = {
            each.kind: Outcome(files_before=each.files, size_before=each.size) for each in works
        }
        return TableUpkeep(name, planned, checkpoint=_checkpoint_is_due(lake, name, table))
    done = {each.kind: rewrite(lake, name, each.groups, each.kind) for each in works}
    table = lake.table(name)
    assert table is not None
    due = _checkpoint_is_due(lake, name, table)
    if due:
        table.create_checkpoint()
    return TableUpkeep(name, done, checkpoint=due)


def _vacuum_table(
    lake: Lake,
    table: TableUpkeep,
    pinned: set[int],
    now: datetime,
    grace: timedelta,
    dry_run: bool,
) -> TableUpkeep:
    garbage = Garbage()
    note, failed = table.note, table.failed
    try:
        garbage = vacuum.of_table(lake, table.name, pinned, now, grace)
        if not dry_run:
            vacuum.remove(lake, table.name, garbage)
    except FAILURES as error:
        note, failed = _told(error, table.name), True
    return replace(table, garbage=garbage, note=note, failed=failed)


def _checkpoint_is_due(lake: Lake, name: str, table: DeltaTable) -> bool:
    path = f"{name.replace('.', '/')}/_delta_log/_last_checkpoint"
    try:
        last = int(json.loads(bytes(lake.objects.get(path).bytes()))["version"])
    except FileNotFoundError:
        last = -1
    return table.version() - last >= CHECKPOINT_AFTER


def _rewritten_pin(lake: Lake, name: str, pin: Pin) -> Pin | None:
    """The table as upkeep left it, if nobody else changed it since a release pinned it."""
    table = lake.table(name)
    if table is None or not 0 < (commits := table.version() - pin.version) <= _UPKEEP_COMMITS:
        return None
    if not all(UPKEEP in entry for entry in table.history(commits)):
        return None
    new = Pin.of(table)
    if (new.rows, new.schema) != (pin.rows, pin.schema):
        log.error(
            "%s: upkeep changed the table; release not moved to version %d", name, new.version
        )
        return None
    return new


def _told(error: Exception, name: str) -> str:
    told = disk_failure(error, name) or error
    return str(told).removeprefix(f"{name}: ").splitlines()[0]
