"""What can be deleted from a lake without anyone missing it, and its deletion.

A file stays when it is younger than the grace, or belongs to a version that a kept release pins,
or to one that was the newest at any time within the grace. The same is true of log entries, but
of a stream's, which are thinned sooner: it makes tens of thousands a day. No commit is made, and a
run that dies has deleted only what the next run would delete as well.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import obstore
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tarn.errors import TarnError
from tarn.storage import catalog, readers
from tarn.storage.datafiles import data_files
from tarn.storage.lake import OWN_SCHEMA, Lake
from tarn.storage.soundness import COMMIT, is_log_file
from tarn.storage.upkeep.rewrite import FOLDER as DRAFTS

if TYPE_CHECKING:
    from obstore import ObjectMeta

_CHECKPOINT = re.compile(r"\d{20}\.checkpoint\.parquet")
_UNFINISHED = re.compile(r"#\d+$")
"""End of the name of a file that a local writer had not finished; listings do not show it."""
LOG_ENTRIES = 1000
"""So many versions of a thinned log stay readable: a quarter of an hour of one-second commits."""
_LEAST_LOG_ENTRIES = 10
"""Fewer are not worth a checkpoint of their own."""


@dataclass(frozen=True)
class Garbage:
    """Files that nobody needs, in the order in which they may be deleted."""

    files: tuple[tuple[str, int], ...] = ()
    """Data files and remains of dead writers: path below the lake's root, bytes."""
    log: tuple[tuple[str, int], ...] = ()
    """Entries and checkpoints of a table's log, oldest first."""
    checkpoint: int | None = None
    """Version of which a checkpoint must be made before the log is trimmed."""

    @property
    def size(self) -> int:
        return sum(size for _, size in (*self.files, *self.log))


def of_table(
    lake: Lake, name: str, pinned: Iterable[int], now: datetime, grace: timedelta
) -> Garbage:
    """The garbage of a table. pinned: the versions that must stay readable.

    Raises TarnError when one of them is not readable as it is: then nothing is touched.
    """
    folder = name.replace(".", "/")
    # First the listing, then the log: what is committed in between is seen as needed.
    listed = list(lake.files(folder))
    log = _Log.of(listed, folder)
    cutoff = now - grace
    old = [e for e in listed if e["last_modified"] < cutoff and _is_data(e["path"], folder)]
    unfinished = tuple(_unfinished(lake, folder, cutoff))
    table = lake.table(name)
    if table is None:
        if (
            lake.is_local
            and Path(lake.root, folder).resolve() != Path(lake.root).resolve() / folder
        ):
            return Garbage()
        if versions := sorted(pinned):
            raise _unreadable(name, versions[0])
        if any(entry["path"].startswith(f"{folder}/_delta_log/") for entry in listed):
            raise TarnError("its log is not readable", name, "nothing of this table was removed")
        half = tuple((entry["path"], entry["size"]) for entry in old)
        return Garbage(files=(*half, *unfinished))
    newest = table.version()
    oldest_shown = min(log.tip_at(cutoff), newest)
    later = range(oldest_shown + 1, newest + 1)
    begun = {version for version in log.beginnings if version in later}
    needed_versions = sorted({*pinned, oldest_shown, *begun, newest})
    files = list(unfinished)
    if old:
        committed = {*log.commits, *range(max(log.commits, default=-1) + 1, newest + 1)}
        since = [version for version in later if version in committed]
        needed = _needed(lake, name, needed_versions, since)
        live = {f"{folder}/{key}" for key in needed}
        files = [(e["path"], e["size"]) for e in old if e["path"] not in live] + files
    trimmed, checkpoint = log.before(needed_versions[0], cutoff)
    return Garbage(tuple(files), trimmed, checkpoint)


def thin(lake: Lake, name: str, pinned: Iterable[int]) -> None:
    """Forget the versions of a table but the last ones and those pinned.

    Each commit lists the log, so a long one makes it slow. What stays can be read as before.
    """
    folder = name.replace(".", "/")
    log = _Log.of(lake.files(f"{folder}/_delta_log"), folder)
    oldest = max(log.commits, default=0) - LOG_ENTRIES
    base = log.base_of(oldest)
    if base is None:
        return
    stay: set[int] = set()
    for version in pinned:
        stay.update(range(log.base_of(version) or 0, version + 1))
    for version, entry in log.dated:
        if version < base and version not in stay:
            delete(lake, entry["path"])


def of_lake(lake: Lake, now: datetime, grace: timedelta) -> Garbage:
    """What dead processes left outside of tables."""
    cutoff = now - grace
    left = [e for folder in (DRAFTS, readers.FOLDER) for e in lake.files(folder)]
    files = [(entry["path"], entry["size"]) for entry in left if entry["last_modified"] < cutoff]
    files += [*_unfinished(lake, OWN_SCHEMA, cutoff)]
    if lake.is_local:
        for path in Path(lake.root).glob(f"{catalog.FILE}.*"):
            if not path.suffix[1:].isdigit():
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                if datetime.fromtimestamp(status.st_mtime, UTC) < cutoff:
                    files.append((path.name, status.st_size))
    return Garbage(tuple(files))


def remove(lake: Lake, name: str | None, garbage: Garbage) -> None:
    """Delete garbage: data first, then the log from its oldest entry on."""
    for path, _ in garbage.files:
        delete(lake, path)
    if not garbage.log:
        return
    if garbage.checkpoint is not None and name is not None:
        table = lake.table(name, garbage.checkpoint)
        assert table is not None
        table.create_checkpoint()
    for path, _ in garbage.log:
        delete(lake, path)


def delete(lake: Lake, path: str) -> None:
    """Delete a file of the lake; one that is gone already is fine."""
    if lake.is_local:
        # An object store's client does not see the unfinished files of another.
        root, full = Path(lake.root), Path(lake.root, path)
        full.unlink(missing_ok=True)
        with suppress(OSError):
            for parent in takewhile(lambda each: each != root, full.parents):
                parent.rmdir()
        return
    with suppress(FileNotFoundError):
        obstore.delete(lake.objects, path)


@dataclass(frozen=True)
class _Log:
    """The files of a table's `_delta_log`."""

    commits: "Mapping[int, ObjectMeta]"
    checkpoints: "Mapping[int, ObjectMeta]"
    """Those in one file, as delta-rs makes them."""
    bases: frozenset[int]
    """Versions of all checkpoints; those of others may have parts."""

    @classmethod
    def of(cls, listed: "Iterable[ObjectMeta]", folder: str) -> "_Log":
        commits: dict[int, ObjectMeta] = {}
        checkpoints: dict[int, ObjectMeta] = {}
        bases: set[int] = set()
        prefix = f"{folder}/_delta_log/"
        for entry in listed:
            file = entry["path"].removeprefix(prefix)
            if match := COMMIT.fullmatch(file):
                commits[int(match[1])] = entry
            elif is_log_file(file):
                bases.add(int(file[:20]))
                if _CHECKPOINT.fullmatch(file):
                    checkpoints[int(file[:20])] = entry
        return cls(commits, checkpoints, frozenset(bases))

    @property
    def dated(self) -> "list[tuple[int, ObjectMeta]]":
        """Files with their versions, oldest first."""
        files = [*self.commits.items(), *self.checkpoints.items()]
        return sorted(files, key=lambda each: each[0])

    @cached_property
    def readable(self) -> list[int]:
        """The versions of which everything is there, oldest first."""
        found: list[int] = []
        for version in sorted({*self.commits, *self.bases}):
            if version in self.bases or version == 0 or found[-1:] == [version - 1]:
                found.append(version)
        return found

    @property
    def beginnings(self) -> list[int]:
        """The readable versions before which one is missing: in a log that was never thinned, the
        first alone."""
        pairs = zip([None, *self.readable], self.readable, strict=False)
        return [version for before, version in pairs if before != version - 1]

    def base_of(self, version: int) -> int | None:
        """The checkpoint from which a version is read; None if there is none."""
        return max((v for v in self.checkpoints if v <= version), default=None)

    def tip_at(self, moment: datetime) -> int:
        """The version that was the newest at a moment; the oldest readable one, if none was.

        A clock that was set back makes versions look younger than they are, so they stay.
        """
        later = [v for v, entry in self.commits.items() if entry["last_modified"] >= moment]
        before = [v for v in self.readable if not later or v < min(later)]
        return max(before) if before else min(self.readable, default=0)

    def before(
        self, version: int, cutoff: datetime
    ) -> tuple[tuple[tuple[str, int], ...], int | None]:
        """Entries that `version` and later ones can be read without, and the checkpoint to make.

        One is made only where it frees ten entries more than the checkpoint there is.
        """
        base = self.base_of(version)
        make = None
        if len([v for v in self.commits if (base or 0) <= v < version]) >= _LEAST_LOG_ENTRIES:
            base = make = version
        if base is None:
            return (), None
        before = takewhile(lambda each: each[0] < base, self.dated)
        old = takewhile(lambda each: each[1]["last_modified"] < cutoff, before)
        entries = tuple((entry["path"], entry["size"]) for _, entry in old)
        return entries, make if entries else None


def _needed(lake: Lake, name: str, versions: Sequence[int], since: Sequence[int]) -> set[str]:
    """Keys of the files of some versions, and of all that the commits `since` added."""
    keys: set[str] = set()
    for version in versions:
        try:
            # The log alone: what it names is kept, whether it is there or not.
            table = DeltaTable(lake.uri(name), version, lake.options)
        except (DeltaError, OSError) as error:
            raise _unreadable(name, version) from error
        keys |= {file.key for file in data_files(table)}
    for version in since:
        path = f"{name.replace('.', '/')}/_delta_log/{version:020}.json"
        try:
            lines = bytes(lake.objects.get(path).bytes()).decode().splitlines()
        except FileNotFoundError:  # thinned meanwhile
            continue
        entries = (json.loads(line) for line in lines)
        keys |= {unquote(entry["add"]["path"]) for entry in entries if "add" in entry}
    return keys


def _unreadable(name: str, version: int) -> TarnError:
    return TarnError(
        f"version {version}, which a release or the grace needs, is not readable",
        name,
        "nothing of this table was removed; see tarn release list",
    )


def _is_data(path: str, folder: str) -> bool:
    """Whether a file is one that a table's versions may refer to; others are not ours."""
    inner = path.removeprefix(f"{folder}/")
    parents = inner.split("/")[:-1]
    hidden = any(part.startswith(("_", ".")) and "=" not in part for part in parents)
    return inner.endswith(".parquet") and not hidden


def _unfinished(lake: Lake, folder: str, cutoff: datetime) -> Iterator[tuple[str, int]]:
    """Files below a local folder that a killed writer began, and commits it never made."""
    if not lake.is_local:
        return
    for parent, _, names in os.walk(Path(lake.root, folder)):
        for name in names:
            path = Path(parent, name)
            if not (_UNFINISHED.search(name) or name.endswith(".json.tmp")):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                if datetime.fromtimestamp(status.st_mtime, UTC) < cutoff:
                    yield path.relative_to(lake.root).as_posix(), status.st_size
