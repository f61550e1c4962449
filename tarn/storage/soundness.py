"""What must be true of a table before it is read or changed, and how it is refused otherwise.

delta-rs and DuckDB share a kernel that refuses newer protocols, gaps in the log and corrupt
commits. They do read what a log names outside the table, a commit cut down to nothing, and a file
that is not the one the log describes; here those are refused too. Nothing is ever changed.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from obstore.store import ObjectStore

from tarn.errors import TarnError

COMMIT = re.compile(r"(?P<version>\d{20})\.json")
_LOG_FILE = re.compile(r"\d{20}\.(json|checkpoint\..*)")
_LAST = 500
"""So many commits, with what lies between, fit a page of a listing."""
_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TRACE = re.compile(r"(\s+0: <|\n\s*\n|\n?Debug source:|ParsedLogPath|LINE 1:).*", re.S)
_WRITTEN_BY_DELTA = re.compile(r"part-\d{5}-[0-9a-f-]{36}(-c\d{3}|\.c\d{3})?(\.\w+)?\.parquet")
_OTHERS = {
    "metadata": "an Iceberg table",
    ".hoodie": "a Hudi table",
    "_SUCCESS": "Parquet files of another program",
    "_temporary": "Parquet files of another program",
}


def refusal(name: str, error: BaseException) -> TarnError:
    """What a table that cannot be opened tells its reader."""
    said = _TRACE.sub("", _COLOUR.sub("", str(error)))
    said = re.sub(r"^(Kernel error|Generic delta kernel error)(:| ->)\s*", "", said.strip())
    said = " ".join(said.split()).removesuffix(":")[:300] or type(error).__name__
    if "Unsupported" in said or "not supported" in said:
        fix = "it was written by a newer program; upgrade Tarn, or drop that feature of the table"
    else:
        fix = "restore the table's _delta_log from a copy, or move the folder away and load anew"
    return TarnError(f"cannot read the Delta table: {said}", name, f"nothing was changed; {fix}")


def is_log_file(name: str) -> bool:
    """Whether a file in `_delta_log` is a commit or a checkpoint."""
    return _LOG_FILE.fullmatch(name) is not None


def check(root: str | None, name: str, table: DeltaTable, objects: ObjectStore) -> None:
    """Raise TarnError if the table is not what its log says. `root`: of a lake on disk."""
    metadata = table.metadata()
    mapped = metadata.configuration.get("delta.columnMapping.mode", "none") != "none"
    if mapped and metadata.partition_columns:
        # Seen with 1.5.5: test_golden.py tells when a later one reads them.
        raise TarnError(
            "column mapping in a partitioned table: DuckDB reads its partition columns as null",
            name,
            "nothing was read; write the table anew without column mapping or partitions",
        )
    sizes = pa.table(table.get_add_actions()).select(["path", "size_bytes"]).to_pydict()
    files = [unquote(path) for path in sizes["path"]]
    for file in files:
        if _ABSOLUTE.match(file) or ".." in file.split("/"):
            raise TarnError(
                f"its log names a file outside its folder: {file}",
                name,
                "nothing was read; a shallow clone must be copied whole (deep clone)",
            )
    if root is None:
        _check_commits(name, _listed_commits(objects, name, table.version()), table.version())
        return
    folder = f"{root}/{name.replace('.', '/')}"
    home = os.path.realpath(root)
    with os.scandir(f"{folder}/_delta_log") as entries:
        log = list(entries)
    for path in (f"{folder}/_delta_log", *(entry.path for entry in log if entry.is_symlink())):
        _check_inside(home, name, path)
    _check_commits(name, _commits(log), table.version())
    _check_files(home, name, folder, zip(files, sizes["size_bytes"], strict=True))


def foreign(objects: ObjectStore, name: str) -> str | None:
    """What a folder without a Delta log holds that is another program's; None if nothing."""
    prefix = name.replace(".", "/")
    entries = objects.list_with_delimiter(prefix)
    names = [str(path).rstrip("/").rpartition("/")[2] for path in entries["common_prefixes"]]
    files = [entry["path"].rpartition("/")[2] for entry in entries["objects"]]
    for entry in (*names, *files):
        if entry in _OTHERS:
            return _OTHERS[entry]
    strange = [f for f in files if f.endswith(".parquet") and not _WRITTEN_BY_DELTA.fullmatch(f)]
    return "Parquet files of another program" if strange else None


def _check_inside(home: str, name: str, path: str) -> None:
    target = os.path.realpath(path)
    if os.path.commonpath((home, target)) != home:
        raise TarnError(
            f"a link leads out of the lake: {path} → {target}",
            name,
            "nothing was read; move what it points at into the lake",
        )


def _check_folders(home: str, name: str, folder: str, file: str, known: set[str]) -> None:
    """Those between the table's and the file: only a link leads elsewhere."""
    path = folder
    for part in file.split("/")[:-1]:
        path = f"{path}/{part}"
        if path not in known:
            if os.path.islink(path):
                _check_inside(home, name, path)
            known.add(path)


def _check_files(home: str, name: str, folder: str, files: Iterator[tuple[str, int]]) -> None:
    _check_inside(home, name, folder)
    known: set[str] = set()
    for file, size in files:
        path = f"{folder}/{file}"
        _check_folders(home, name, folder, file, known)
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                _check_inside(home, name, path)
                found = os.stat(path)
        except FileNotFoundError:
            raise TarnError(
                f"a data file is missing: {file}",
                name,
                "restore it from a copy, or read a version that does not need it;"
                " a vacuum removes files of versions that no release keeps",
            ) from None
        if found.st_size != size:
            raise TarnError(
                f"a data file was cut or replaced: {file} has {found.st_size} bytes,"
                f" its log says {size}",
                name,
                "restore it from a copy, or rebuild the table",
            )


def _commits(log: Sequence["os.DirEntry[str]"]) -> Iterator[tuple[str, int]]:
    """Name and size of the commits that no checkpoint has taken in."""
    checkpoint = max((e.name[:20] for e in log if ".checkpoint" in e.name), default="")
    for entry in log:
        if COMMIT.fullmatch(entry.name) and entry.name[:20] > checkpoint:
            # Upkeep trims the log meanwhile.
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat().st_size


def _listed_commits(objects: ObjectStore, name: str, version: int) -> Iterator[tuple[str, int]]:
    """Name and size of at least the commits that no checkpoint has taken in."""
    log = f"{name.replace('.', '/')}/_delta_log"
    begin = max(version - _LAST, 0)
    last = list(_listed(objects, log, f"{log}/{begin:020}"))
    others = {file for file, _ in last if is_log_file(file) and not COMMIT.fullmatch(file)}
    has_checkpoint = any(int(file[:20]) <= version for file in others)
    yield from last if begin == 0 or has_checkpoint else _listed(objects, log)


def _listed(objects: ObjectStore, log: str, after: str | None = None) -> Iterator[tuple[str, int]]:
    for page in objects.list(log, offset=after):
        for entry in page:
            yield entry["path"].rpartition("/")[2], entry["size"]


def _check_commits(name: str, files: Iterator[tuple[str, int]], version: int) -> None:
    """A commit without a byte would be read as one that changed nothing."""
    for file, size in files:
        commit = COMMIT.fullmatch(file)
        if commit and size == 0 and int(commit["version"]) <= version:
            raise TarnError(
                f"commit {int(commit['version'])} is empty: {file}",
                name,
                "nothing was changed; restore the file from a copy. If the last commit was cut by"
                " a crash, move that file away: the table is then as before it",
            )
