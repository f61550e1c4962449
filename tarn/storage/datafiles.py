"""The data files of a table: what its log says of them, and what their Parquet footers add."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from obstore.store import ObjectStore

from tarn.errors import TarnError
from tarn.storage.lake import Lake
from tarn.storage.policy import Layout

_HARMLESS = {
    "timestampNtz", "appendOnly", "invariants", "checkConstraints", "changeDataFeed",
    "generatedColumns", "v2Checkpoint", "vacuumProtocolCheck",
}  # fmt: skip
"""Table features under which a row is in its file as it is in the table."""


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself."""

    codecs: frozenset[str]
    group_rows: tuple[int, ...]
    compressed: int
    uncompressed: int

    @classmethod
    def of(cls, meta: pq.FileMetaData) -> "Footer":
        groups = [meta.row_group(index) for index in range(meta.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        return cls(
            frozenset(column.compression.lower() for column in columns),
            tuple(group.num_rows for group in groups),
            sum(column.total_compressed_size for column in columns),
            sum(column.total_uncompressed_size for column in columns),
        )

    def has(self, layout: Layout) -> bool:
        """Whether codec and row groups are those of a layout. No footer tells the level."""
        wanted = ceil(sum(self.group_rows) / layout.row_group_rows)
        fits = max(self.group_rows, default=0) <= layout.row_group_rows
        return self.codecs <= {layout.codec} and fits and len(self.group_rows) <= 1.25 * wanted + 1


@dataclass(frozen=True)
class DataFile:
    """One live file of a table at one version."""

    key: str
    """Its path below the table's folder."""
    logged: str = field(repr=False)
    """The same as the log spells it."""
    size: int
    """Bytes."""
    rows: int | None
    """None where the log does not tell."""
    modified: datetime
    partition: Mapping[str, Any]
    """Value of each partition column, in its own type."""


def data_files(table: DeltaTable) -> list[DataFile]:
    """The live files, oldest first."""
    listed = pa.table(table.get_add_actions(flatten=False)).to_pylist()
    files = [
        DataFile(
            key=unquote(each["path"]),
            logged=each["path"],
            size=each["size_bytes"],
            rows=each["num_records"],
            modified=datetime.fromtimestamp(each["modification_time"] / 1000, UTC),
            partition=each.get("partition") or {},
        )
        for each in listed
    ]
    return sorted(files, key=lambda file: (file.modified, file.key))


def why_untouchable(table: DeltaTable) -> str | None:
    """Why upkeep must not move this table's rows to other files; None if it may."""
    protocol = table.protocol()
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    if strange := features - _HARMLESS:
        return f"it uses {', '.join(sorted(strange))}"
    older = "delta.columnMapping.mode"
    if table.metadata().configuration.get(older, "none") != "none":
        return f"it uses {older}"
    if any("://" in file.logged or file.logged.startswith("/") for file in data_files(table)):
        return "some of its files are in other folders"
    return None


@dataclass(frozen=True)
class Reader:
    """Opens the data files of one table without leaving a trace in their access times."""

    lake: Lake
    folder: str
    """The table's folder below the root of the lake."""

    @classmethod
    def of(cls, lake: Lake, name: str) -> "Reader":
        return cls(lake, name.replace(".", "/"))

    @contextmanager
    def open(self, file: DataFile) -> Iterator[pq.ParquetFile]:
        """The file as Parquet."""
        path = f"{self.folder}/{file.key}"
        source: Any
        if self.lake.is_local:
            source = _open_without_trace(Path(self.lake.root, path))
        else:
            source = _Distant(self.lake.objects, path)
        try:
            with pq.ParquetFile(source) as parquet:
                yield parquet
        except pa.ArrowInvalid as error:
            raise TarnError(f"not readable as Parquet: {error}", path) from error
        finally:
            source.close()

    def footer(self, file: DataFile) -> Footer:
        with self.open(file) as parquet:
            return Footer.of(parquet.metadata)

    def last_read(self, file: DataFile) -> datetime | None:
        """When the local file was last read after it was written; None if that is unknown.

        Most systems note the first read after a write, and then one a day.
        """
        if not self.lake.is_local:
            return None
        with suppress(OSError):
            status = os.stat(Path(self.lake.root, self.folder, file.key))
            if status.st_atime > status.st_mtime:
                return datetime.fromtimestamp(status.st_atime, UTC)
        return None


@dataclass(frozen=True)
class Rows:
    """The rows of some files of a table, as the table has them."""

    table: DeltaTable
    reader: Reader
    files: tuple[DataFile, ...]
    groups: range | None = None
    """Of a single file, the row groups that are read; None for all."""
    part: int | None = None
    """Compressed bytes of these row groups."""

    @classmethod
    def sampled(
        cls, table: DeltaTable, reader: Reader, file: DataFile, rows: int, size: int
    ) -> "Rows":
        """Row groups from the middle of a file: so many rows or more, about so many bytes."""
        with reader.open(file) as parquet:
            meta = parquet.metadata
            count = meta.num_row_groups
            start = stop = count // 2
            got_rows = got_size = 0
            while stop < count and (got_rows < rows or got_size < size):
                group = meta.row_group(stop)
                got_rows += group.num_rows
                got_size += sum(
                    group.column(i).total_compressed_size for i in range(group.num_columns)
                )
                stop += 1
        return cls(table, reader, (file,), range(start, stop), got_size)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files) if self.part is None else self.part

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema(self.table.schema().to_arrow())

    def batches(self, batch_rows: int = 8_192) -> Iterator[pa.RecordBatch]:
        """File by file; columns that a file lacks are null."""
        for file in self.files:
            with self.reader.open(file) as parquet:
                groups = None if self.groups is None else list(self.groups)
                for batch in parquet.iter_batches(batch_rows, row_groups=groups, use_threads=False):
                    yield self._conformed(batch, file)

    def stream(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def _conformed(self, batch: pa.RecordBatch, file: DataFile) -> pa.RecordBatch:
        columns = [self._column(batch, each, file) for each in self.schema]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _column(self, batch: pa.RecordBatch, wanted: pa.Field, file: DataFile) -> pa.Array:
        if wanted.name in file.partition:
            value = pa.scalar(file.partition[wanted.name], wanted.type)
            return pa.repeat(value, batch.num_rows)
        index = batch.schema.get_field_index(wanted.name)
        if index < 0:
            return pa.nulls(batch.num_rows, wanted.type)
        column = batch.column(index)
        return column if column.type == wanted.type else column.cast(wanted.type)


class _Distant(io.RawIOBase):
    """A file of an object store. Each read is one request, as Parquet's column chunks want it."""

    def __init__(self, objects: ObjectStore, path: str) -> None:
        self._objects, self._path, self._at = objects, path, 0
        self._size = objects.head(path)["size"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        if length:
            found = self._objects.get_range(self._path, start=self._at, length=length)
            buffer[:length] = memoryview(found)
            self._at += length
        return length


@contextmanager
def unnoticed(lake: Lake, table: DeltaTable) -> Iterator[None]:
    """What is read of the table inside, such as schemas when views are made, counts as no read."""
    before: dict[str, tuple[int, int]] = {}
    if lake.is_local:
        for uri in table.file_uris():
            path = uri.removeprefix("file://")
            with suppress(OSError):
                status = os.stat(path)
                before[path] = (status.st_atime_ns, status.st_mtime_ns)
    yield
    for path, times in before.items():
        with suppress(OSError):
            os.utime(path, ns=times)


def _open_without_trace(path: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOATIME), "rb")
    except (PermissionError, AttributeError):
        return path.open("rb")
