"""Which files of a table are not kept as its policy says.

Nothing is remembered between runs: sizes come from the log, layouts from the names that upkeep
gives its files and from Parquet footers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Any, Literal

from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.storage.datafiles import DataFile, Reader, data_files
from tarn.storage.policy import Layout, TablePolicy
from tarn.storage.upkeep.rewrite import Group

Kind = Literal["compact", "cool", "recompress"]
_NAMED = re.compile(r"\.(?:zstd|snappy|gzip|brotli|lz4_raw|uncompressed)_\d+_\d+\.parquet$")
_DAY = re.compile(r"(\d{4})-?(\d\d)?-?(\d\d)?(?:[ T].*)?")


@dataclass(frozen=True)
class Work:
    """One kind of work on a table."""

    kind: Kind
    groups: tuple[Group, ...]

    @property
    def files(self) -> int:
        return sum(len(group.files) for group in self.groups)

    @property
    def size(self) -> int:
        """Bytes before."""
        return sum(group.size for group in self.groups)


def work(
    table: DeltaTable,
    reader: Reader,
    policy: TablePolicy,
    now: datetime,
    kinds: Sequence[Kind] = ("compact", "cool", "recompress"),
) -> list[Work]:
    """What is to be done at the version `table` is at; of each kind at most one.

    Small files of a partition are compacted; all that is cold is brought into the cold layout;
    other files that are not in the declared layout are recompressed.
    """
    found: dict[Kind, list[Group]] = {}
    for files in _by_partition(data_files(table)):
        cold = is_cold(files[0], policy, now, reader.folder.replace("/", "."))
        for kind, group in _of_partition(files, reader, policy, cold, kinds):
            found.setdefault(kind, []).append(group)
    return [Work(kind, tuple(found[kind])) for kind in kinds if kind in found]


def _by_partition(files: Sequence[DataFile]) -> Iterator[list[DataFile]]:
    def partition(file: DataFile) -> str:
        return repr(sorted(file.partition.items()))

    # Sorting is stable, so within a partition the files stay in the order of time.
    return (list(files) for _, files in groupby(sorted(files, key=partition), partition))


def _of_partition(
    files: Sequence[DataFile],
    reader: Reader,
    policy: TablePolicy,
    cold: bool,
    kinds: Sequence[Kind],
) -> Iterator[tuple[Kind, Group]]:
    layout = policy.cold.layout if cold else policy.layout
    order = policy.cluster_by
    if cold and policy.cold.cluster_by is not None:
        order = policy.cold.cluster_by
    kind: Kind = "cool" if cold else "recompress"
    changed: list[DataFile] = []
    if kind in kinds:
        written = policy.layout
        changed = [file for file in files if not _has(file, layout, written, reader)]
        if changed:
            yield kind, Group(tuple(changed), layout, order)
    if "compact" in kinds and not changed:
        small = worth_compacting(files, layout, policy.compact_from)
        if small:
            yield "compact", Group(tuple(small), layout, order)


def worth_compacting(files: Sequence[DataFile], layout: Layout, least: int) -> list[DataFile]:
    """The small files to be made one; none when they are too few.

    A file larger than all smaller ones together waits: so a table that grows by small files is
    rewritten as often as the logarithm of their number, not once for each run.
    """
    small = sorted(
        (file for file in files if file.size < layout.target_file_bytes / 2),
        key=lambda file: file.size,
    )
    while small and small[-1].size > sum(file.size for file in small[:-1]):
        small.pop()
    chosen = {file.key for file in small}
    return [file for file in files if file.key in chosen] if len(small) >= least else []


def _has(file: DataFile, layout: Layout, written: Layout, reader: Reader) -> bool:
    """Whether a file has a layout; `written` is the one that writers give their files."""
    if _NAMED.search(file.key):
        return file.key.endswith(layout.mark)
    if (layout.codec, layout.codec_level) != (written.codec, written.codec_level):
        return False
    return reader.footer(file).has(layout)


def is_cold(file: DataFile, policy: TablePolicy, now: datetime, table: str) -> bool:
    """Whether a file is to be kept in the cold layout."""
    if policy.tier == "cold":
        return True
    column, after = policy.cold.partition, policy.cold.after
    if column is None or after is None:
        return False
    if column not in file.partition:
        raise TarnError(
            f"storage.yml: cold.partition is {column}, by which the table is not partitioned",
            table,
            f"partition it by {column}, or correct storage.yml",
        )
    value = file.partition[column]
    end = period_end(value)
    if end is None and value is not None:
        raise TarnError(
            f"storage.yml: cold.partition is {column}, but {value!r} is no year, month or day",
            table,
            "name a partition column that tells the time",
        )
    return end is not None and datetime(end.year, end.month, end.day, tzinfo=UTC) <= now - after


def period_end(value: Any) -> date | None:
    """The first day after the year, month or day that a partition stands for."""
    if isinstance(value, date):
        value = value.isoformat()[:10]
    match = _DAY.fullmatch(str(value))
    if match is None:
        return None
    year, month, day = (int(part) if part else None for part in match.groups())
    assert year is not None
    try:
        start = date(year, month or 1, day or 1)
        if month is None:
            return date(year + 1, 1, 1)
        if day is None:
            return date(year + month // 12, month % 12 + 1, 1)
        return start + timedelta(days=1)
    except ValueError:
        return None
