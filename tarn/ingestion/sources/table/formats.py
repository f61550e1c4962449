"""Table formats of others: what version a table is at, and its rows in batches.

Each is read by its own library, which refuses what it does not understand. Rows are streamed:
memory is bounded by a batch, or where rows must be merged by one file with its log.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import duckdb
import obstore
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from obstore.store import LocalStore, ObjectStore

from tarn.errors import TarnError
from tarn.ingestion.sources import BATCH_ROWS
from tarn.storage import soundness
from tarn.storage.duck import prepare, select_from
from tarn.storage.lake import Lake
from tarn.storage.s3 import S3

MEMORY = "256MB"
_METADATA = re.compile(r"v?(?P<number>\d+)(-.*)?(\.gz)?\.metadata\.json(\.gz)?")
NO_SNAPSHOT = 0
"""Version of an Iceberg table that nothing has been written to yet."""


@dataclass(frozen=True)
class Place:
    """Where a table is and how it is reached."""

    address: str
    """An absolute path or s3:// address, without a slash at its end."""
    service: S3 | None

    @cached_property
    def objects(self) -> ObjectStore:
        """The files below it."""
        return self.service.store(self.address) if self.service else LocalStore(self.address)

    def names(self, folder: str | None = None) -> set[str]:
        """What lies in the folder, or one below it."""
        listed = obstore.list_with_delimiter(self.objects, folder)
        found = [*listed["common_prefixes"], *(entry["path"] for entry in listed["objects"])]
        return {str(path).rstrip("/").rpartition("/")[2] for path in found}


class Reader(Protocol):
    """A table at one version."""

    version: int

    @property
    def keys(self) -> Sequence[str]:
        """Columns by which the table itself tells rows apart, if it says so."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of its columns."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in the schema's columns."""


class Delta:
    """A Delta table, read by DuckDB's kernel: deletion vectors and column mapping included."""

    keys: Sequence[str] = ()

    def __init__(self, place: Place, version: int | None, as_of: datetime | None) -> None:
        self.place = place
        options = place.service.delta_options() if place.service else {}
        self.table = DeltaTable(place.address, version=version, storage_options=options)
        if as_of is not None:
            self.table.load_as_version(as_of)
        self.version = self.table.version()
        root = None if place.service else place.address
        soundness.check(root, "", self.table, place.objects)
        self.sql = select_from(self.table)

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema(self.table.schema().to_arrow())

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from queried(Lake(self.place.address, self.place.service), self.sql)


class Iceberg:
    """An Iceberg table, told by its metadata file."""

    def __init__(self, place: Place, version: int | None, as_of: datetime | None) -> None:
        from pyiceberg.table import StaticTable

        properties = _iceberg_properties(place.service)
        self.table = StaticTable.from_metadata(_metadata_file(place), properties)
        found = self.table.current_snapshot()
        if version is not None:
            found = self.table.snapshot_by_id(version)
        elif as_of is not None:
            found = self.table.snapshot_as_of_timestamp(round(as_of.timestamp() * 1000))
        is_latest = version is None and as_of is None
        if found is None and not is_latest:
            known = ", ".join(str(each.snapshot_id) for each in self.table.snapshots()[-5:])
            raise TarnError(f"the table has no snapshot {version or as_of}; its last: {known}")
        self.version = found.snapshot_id if found else NO_SNAPSHOT
        self.scan = self.table.scan(snapshot_id=None if is_latest else self.version)
        self.keys = sorted(self.table.schema().identifier_field_names())

    @cached_property
    def schema(self) -> pa.Schema:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        return schema_to_pyarrow(self.scan.projection(), include_field_ids=False)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """pyiceberg's own reader of batches reads ahead without end: file by file it does not."""
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan, _read_all_delete_files

        metadata, io = self.table.metadata, self.table.io
        scan = ArrowScan(metadata, io, self.scan.projection(), AlwaysTrue())
        for task in self.scan.plan_files():
            deleted = _read_all_delete_files(io, [task])
            for batch in scan._record_batches_from_scan_tasks_and_deletes([task], deleted):
                yield from _sliced(batch)


class Hudi:
    """A Hudi table, copy-on-write or merge-on-read."""

    def __init__(self, place: Place, version: int | None, as_of: datetime | None) -> None:
        from hudi import HudiTable

        options = _hudi_options(place.service)
        self.table = HudiTable(place.address, options)
        timeline = self.table.get_timeline()
        self.instants = sorted(
            (int(instant.timestamp), int(instant.epoch_mills))
            for instants in (
                timeline.get_completed_commits(),
                timeline.get_completed_deltacommits(),
                timeline.get_completed_replacecommits(),
            )
            for instant in instants
        )
        self.version = self._found(version, as_of)
        settings = self.table.hudi_options()
        keys = settings.get("hoodie.table.recordkey.fields", "")
        self.keys = [key for key in keys.split(",") if key]

    def _found(self, version: int | None, as_of: datetime | None) -> int:
        limit = round(as_of.timestamp() * 1000) if as_of else None
        found = [
            number
            for number, at in self.instants
            if version in (None, number) and (limit is None or at <= limit)
        ]
        if not found:
            known = ", ".join(str(number) for number, _ in self.instants[-5:])
            raise TarnError(f"the table has no instant {version or as_of or ''}; its last: {known}")
        return found[-1]

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema(self.table.get_schema())

    def batches(self) -> Iterator[pa.RecordBatch]:
        from hudi import HudiReadOptions

        partitions = pa.schema(self.table.get_partition_schema()).names
        options = HudiReadOptions().with_as_of_timestamp(str(self.version))
        for each in self.table.read_stream(options.with_batch_size(BATCH_ROWS)):
            batch = pa.record_batch(each)
            # What an older file lacks is null; a partition's value is never that.
            if gone := [name for name in partitions if name not in batch.schema.names]:
                raise TarnError(f"its files lack the partition columns {', '.join(gone)}")
            yield from _sliced(batch)


FORMATS: dict[str, Callable[[Place, int | None, datetime | None], Reader]] = {
    "delta": Delta,
    "iceberg": Iceberg,
    "hudi": Hudi,
}
_MARKS = {"_delta_log": "delta", ".hoodie": "hudi", "metadata": "iceberg"}


def formats_at(place: Place) -> list[str]:
    """Formats of which the folder holds a table."""
    if place.address.endswith(".metadata.json"):
        return ["iceberg"]
    if place.service is None and not Path(place.address).is_dir():
        return []
    found = [_MARKS[name] for name in sorted(place.names()) if name in _MARKS]
    if "iceberg" in found and not any(map(_METADATA.fullmatch, place.names("metadata"))):
        found.remove("iceberg")
    return found


def queried(lake: Lake, sql: str) -> Iterator[pa.RecordBatch]:
    """Rows of a query by a DuckDB of its own."""
    with duckdb.connect() as connection, TemporaryDirectory() as spill:
        prepare(connection, lake)
        connection.execute(f"set memory_limit = '{MEMORY}'")
        connection.execute("set temp_directory = ?", [spill])
        yield from connection.execute(sql).to_arrow_reader(BATCH_ROWS)


def conformed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch in the schema's columns; one that it lacks is null."""
    columns = [
        pc.cast(batch.column(field.name), field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def _metadata_file(place: Place) -> str:
    """The metadata file that is in force: the one the version hint names, else the newest."""
    if place.address.endswith(".metadata.json"):
        return place.address
    names = place.names("metadata")
    if "version-hint.text" in names:
        hint = bytes(obstore.get(place.objects, "metadata/version-hint.text").bytes())
        told = hint.decode().strip()
        for name in (f"v{told}.metadata.json", f"{told}.metadata.json", told):
            if name in names:
                return f"{place.address}/metadata/{name}"
        raise TarnError(f"its version hint names {told}, which is not there")
    numbered = {m[0]: int(m["number"]) for name in names if (m := _METADATA.fullmatch(name))}
    newest = [name for name in numbered if numbered[name] == max(numbered.values())]
    if len(newest) != 1:
        told = f"{len(newest)} metadata files are the newest" if newest else "no metadata file"
        raise TarnError(told, fix="name the metadata.json under path:")
    return f"{place.address}/metadata/{newest[0]}"


def _iceberg_properties(service: S3 | None) -> dict[str, str]:
    if service is None:
        return {}
    keys = service.keys()
    found = {
        "s3.access-key-id": keys.key,
        "s3.secret-access-key": keys.secret,
        "s3.session-token": keys.token,
        "s3.region": service.region,
        "s3.endpoint": service.endpoint,
        "s3.force-virtual-addressing": str(not service.is_path_style).lower(),
    }
    return {name: value for name, value in found.items() if value}


def _hudi_options(service: S3 | None) -> dict[str, str]:
    options: dict[str, Any] = service.delta_options() if service else {}
    return {name.lower(): value for name, value in options.items() if name.startswith("AWS_")}


def utc(moment: datetime) -> datetime:
    """A time without a zone is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
