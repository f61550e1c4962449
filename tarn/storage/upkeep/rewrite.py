"""The same rows in other files: compaction, sorting and recompression of a table.

delta-rs's own optimize leaves single files as they are and sorts files by size, so it can neither
recompress nor keep the order of time. Here the new files are written by delta-rs as a table of
their own below `_tarn/upkeep`, moved into the table's folder, and swapped in by one commit that
says the data did not change. A process that dies leaves files that no version knows.
"""

import json
import logging
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import duckdb
import obstore
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from tarn.errors import TarnError
from tarn.storage.datafiles import DataFile, Reader, Rows, data_files
from tarn.storage.duck import quoted
from tarn.storage.lake import OWN_SCHEMA, Lake
from tarn.storage.policy import Layout
from tarn.storage.writer import UPKEEP

log = logging.getLogger(__name__)

FOLDER = f"{OWN_SCHEMA}/upkeep"
ATTEMPTS = 6
_COMMIT_BYTES = 1024**3
"""Work in one commit: what a crash can cost."""
_SORT_MEMORY = "256MB"


@dataclass(frozen=True)
class Group:
    """Files of one partition that become others."""

    files: tuple[DataFile, ...]
    layout: Layout
    cluster_by: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Outcome:
    """What became of a rewrite; sizes in bytes."""

    files_before: int = 0
    files_after: int = 0
    size_before: int = 0
    size_after: int = 0
    overtaken: int = 0
    """Files left alone because somebody else replaced them meanwhile."""

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            self.files_before + other.files_before,
            self.files_after + other.files_after,
            self.size_before + other.size_before,
            self.size_after + other.size_after,
            self.overtaken + other.overtaken,
        )


@dataclass(frozen=True)
class _Rewritten:
    """A group and the files that hold its rows now; no version knows them yet."""

    group: Group
    added: tuple[AddAction, ...]

    def outcome(self) -> Outcome:
        return Outcome(
            files_before=len(self.group.files),
            files_after=len(self.added),
            size_before=self.group.size,
            size_after=sum(each.size for each in self.added),
        )

    def lost(self) -> Outcome:
        """Its new files stay for vacuum, in case the commit was made after all."""
        return Outcome(overtaken=len(self.group.files))


def rewrite(lake: Lake, name: str, groups: Sequence[Group], kind: str) -> Outcome:
    """Rewrite groups of files of the newest version; readers and writers go on meanwhile.

    kind goes into the commit's metadata. Memory stays below a few row groups; sorts spill to disk.
    """
    marks = {**lake.stamp, UPKEEP: kind}
    outcome = Outcome()
    waiting: list[_Rewritten] = []
    for group in groups:
        table = _newest(lake, name)
        live = {file.logged for file in data_files(table)}
        if any(file.logged not in live for file in group.files):
            outcome += Outcome(overtaken=len(group.files))
            continue
        waiting.append(_write(lake, name, table, group))
        if sum(each.group.size for each in waiting) >= _COMMIT_BYTES:
            outcome += _commit(lake, name, waiting, marks)
            waiting = []
    return outcome + _commit(lake, name, waiting, marks) if waiting else outcome


def repartition(lake: Lake, name: str, partition_by: Sequence[str], layout: Layout) -> Outcome:
    """Rewrite a whole table by partitions. Any commit made meanwhile makes it start again."""
    marks = {**lake.stamp, UPKEEP: "partition"}
    for attempt in range(1, ATTEMPTS + 1):
        table = _newest(lake, name)
        before = data_files(table)
        try:
            write_deltalake(
                table,
                Rows(table, Reader.of(lake, name), tuple(before)).stream(),
                mode="overwrite",
                schema_mode="overwrite",
                partition_by=list(partition_by),
                target_file_size=layout.target_file_bytes,
                writer_properties=layout.writer_properties(),
                commit_properties=CommitProperties(marks, max_commit_retries=0),
            )
        except CommitFailedError as conflict:
            log.info("%s: another writer was first, attempt %d: %s", name, attempt, conflict)
            continue
        after = data_files(table)
        sizes = (sum(file.size for file in files) for files in (before, after))
        return Outcome(len(before), len(after), *sizes)
    return Outcome(overtaken=len(before))


def measure(rows: Rows, group: Group, partition_by: Sequence[str] = ()) -> int:
    """Bytes that the rows come to in a group's layout: they are written and thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        _store(folder, rows, group, {}, partition_by)
        return sum(file.size for file in data_files(DeltaTable(folder)))


def _newest(lake: Lake, name: str) -> DeltaTable:
    table = lake.table(name)
    if table is None:
        raise TarnError("the table vanished during upkeep", name)
    return table


def _write(lake: Lake, name: str, table: DeltaTable, group: Group) -> _Rewritten:
    """Write a group's rows as files of the table's folder."""
    rows = Rows(table, Reader.of(lake, name), group.files)
    draft = f"{FOLDER}/{uuid4().hex}"
    uri = f"{lake.root}/{draft}"
    _store(uri, rows, group, dict(lake.options))
    made = _added(lake, draft)
    counts = [file.rows for file in group.files if file.rows is not None]
    written = sum(json.loads(each["stats"])["numRecords"] for each in made)
    if len(counts) == len(group.files) and written != sum(counts):
        raise TarnError(f"{written} rows were written where {sum(counts)} were read", name)
    added = tuple(_adopt(lake, draft, name.replace(".", "/"), each, group.layout) for each in made)
    for entry in list(lake.files(draft)):
        _delete(lake, entry["path"])
    return _Rewritten(group, added)


def _store(
    uri: str,
    rows: Rows,
    group: Group,
    options: dict[str, str],
    partition_by: Sequence[str] = (),
) -> None:
    write_deltalake(
        uri,
        _sorted(rows, group.cluster_by) if group.cluster_by else rows.stream(),
        mode="error",
        partition_by=list(partition_by) or rows.table.metadata().partition_columns or None,
        target_file_size=group.layout.target_file_bytes,
        writer_properties=group.layout.writer_properties(),
        storage_options=options or None,
    )


def _sorted(rows: Rows, columns: Sequence[str]) -> pa.RecordBatchReader:
    """The rows in order, sorted on disk if need be; one pass, then it is spent."""
    order = ", ".join(quoted(column) for column in columns)

    def batches() -> Any:
        with (
            tempfile.TemporaryDirectory() as spill,
            duckdb.connect(
                config={"memory_limit": _SORT_MEMORY, "temp_directory": spill, "threads": 1}
            ) as connection,
        ):
            connection.execute("set TimeZone = 'UTC'; set enable_progress_bar = false")
            connection.register("incoming", rows.stream())
            found = connection.execute(f"select * from incoming order by {order}")
            for batch in found.to_arrow_reader(8_192):
                arrays = [batch.column(each.name).cast(each.type) for each in rows.schema]
                yield pa.RecordBatch.from_arrays(arrays, schema=rows.schema)

    return pa.RecordBatchReader.from_batches(rows.schema, batches())


def _added(lake: Lake, draft: str) -> list[dict[str, Any]]:
    """The files of a table just made, as its log describes them."""
    key = f"{draft}/_delta_log/{0:020}.json"
    lines = bytes(lake.objects.get(key).bytes()).decode().splitlines()
    return [entry["add"] for entry in map(json.loads, lines) if "add" in entry]


def _adopt(lake: Lake, draft: str, folder: str, made: dict[str, Any], layout: Layout) -> AddAction:
    """Move a file from a draft into the table's folder, under a name that tells its layout."""
    parent = made["path"].rpartition("/")[0]
    logged = f"{parent}/" * bool(parent) + f"part-00000-{uuid4()}-c000{layout.mark}"
    obstore.rename(lake.objects, f"{draft}/{unquote(made['path'])}", f"{folder}/{unquote(logged)}")
    # delta-rs encodes the path for the log by itself.
    return AddAction(
        path=unquote(logged),
        size=made["size"],
        partition_values=made["partitionValues"],
        modification_time=made["modificationTime"],
        data_change=False,
        stats=made["stats"],
    )


def _commit(
    lake: Lake, name: str, rewritten: Sequence[_Rewritten], marks: dict[str, str]
) -> Outcome:
    """Swap in what can still be swapped in: groups of which every file is live."""
    outcome = Outcome()
    waiting = list(rewritten)
    for attempt in range(1, ATTEMPTS + 1):
        table = _newest(lake, name)
        live = {file.logged for file in data_files(table)}
        for each in [w for w in waiting if any(f.logged not in live for f in w.group.files)]:
            waiting.remove(each)
            outcome += each.lost()
        if not waiting:
            return outcome
        try:
            _swap(table, waiting, marks)
        except CommitFailedError as conflict:
            log.info("%s: another writer was first, attempt %d: %s", name, attempt, conflict)
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
            continue
        return sum((each.outcome() for each in waiting), outcome)
    return sum((each.lost() for each in waiting), outcome)


def _swap(table: DeltaTable, rewritten: Sequence[_Rewritten], marks: dict[str, str]) -> None:
    now = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = []
    for each in rewritten:
        actions += each.added
        for file in each.group.files:
            actions.append(RemoveAction(file.key, False, now, file.size))
    table.create_write_transaction(
        actions,
        "append",
        table.schema(),
        partition_by=table.metadata().partition_columns or None,
        commit_properties=CommitProperties(custom_metadata=dict(marks)),
    )


def _delete(lake: Lake, key: str) -> None:
    with suppress(FileNotFoundError):
        obstore.delete(lake.objects, key)
