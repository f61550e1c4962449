"""Tables shared by the Delta Sharing protocol, read whole whenever their version has changed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, Any

import dlt
import pyarrow as pa
import pyarrow.parquet as pq
from delta_sharing.protocol import AddFile, DeltaSharingProfile
from delta_sharing.protocol import Table as SharedTable
from delta_sharing.rest_client import DataSharingRestClient
from deltalake import Schema
from dlt.extract import DltResource
from dlt.sources.helpers import requests
from requests.exceptions import ConnectionError, HTTPError  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.delta_sharing import SharingTable
from tarn.ingestion.landed import Landed
from tarn.ingestion.masking import secrets_in
from tarn.ingestion.sources import BATCH_ROWS, Extract, Offered, Source, column_names
from tarn.ingestion.types import exact_cast, landing, shown
from tarn.settings import Settings

_RETRIES = 4
_CHUNK = 1 << 20


class DeltaSharing(Source):
    """A share, opened by its profile file."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared = declared
        self.where = declared.file.where("connection")
        path = home.project_dir / str(declared.system.connection)
        try:
            text = path.read_text(encoding="utf-8")
            self.profile = DeltaSharingProfile.from_json(text)
            self.secrets = frozenset(secrets_in(json.loads(text)))
        except OSError as error:
            what = f"no profile file {declared.system.connection}"
            raise TarnError(what, self.where, "check the path") from error
        except (ValueError, KeyError) as error:
            raise TarnError(f"no Delta Sharing profile: {error!r}", self.where) from error
        self.client = DataSharingRestClient(self.profile, num_retries=_RETRIES)

    def extract(self, table: str, landed: Landed) -> Extract | None:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, SharingTable)
        shared = SharedTable(spec.table or table, spec.share, spec.shared_schema)
        name = f"{shared.share}.{shared.schema}.{shared.name}"
        version = self._version(shared, table)
        mark = f"delta_sharing:{name}"
        if landed.table is not None and landed.table.transaction_version(mark) == version:
            return None
        reading = _Reading(self.client, shared, version, landed)
        return Extract(reading.open, is_changed=True, transaction=(mark, version))

    def check(self) -> list[str]:
        shared = self._shared()
        shares = sorted({table.share for table in shared})
        return [
            f"{self.profile.endpoint}: {len(shared)} tables in {', '.join(shares) or 'no'} shares"
        ]

    def offered(self) -> list[Offered]:
        """All tables of all shares."""
        shared = self._shared()
        names = [table.name for table in shared]
        return [self._offer(table, is_alone=names.count(table.name) == 1) for table in shared]

    def _offer(self, shared: SharedTable, is_alone: bool) -> Offered:
        with self._told(self.where, str(shared.name)):
            metadata = self.client.query_table_metadata(shared).metadata
        schema = pa.schema(Schema.from_json(metadata.schema_string).to_arrow())
        names = column_names(schema.names, shared.name)
        (name,) = column_names([shared.name if is_alone else f"{shared.schema}_{shared.name}"], "")
        spec = {"share": shared.share, "schema": shared.schema, "table": shared.name}
        if name == shared.name:
            del spec["table"]
        columns = {
            column: shown(landing(field, shared.name))
            for column, field in zip(names, schema, strict=True)
        }
        return Offered(name, {**spec, "write": "replace"}, columns, metadata.description or "")

    def _shared(self) -> list[SharedTable]:
        with self._told(self.where, "its shares"):
            shares = self.client.list_shares().shares
            return [
                table for share in shares for table in self.client.list_all_tables(share).tables
            ]

    def _version(self, shared: SharedTable, table: str) -> int:
        name = f"{shared.share}.{shared.schema}.{shared.name}"
        with self._told(self.declared.file.where("tables", table), name):
            return int(self.client.query_table_version(shared).delta_table_version)

    @contextmanager
    def _told(self, where: str, asked_for: str) -> Iterator[None]:
        """What goes wrong in asking the server, in words."""
        try:
            yield
        except HTTPError as error:
            code = error.response.status_code if error.response is not None else "?"
            what = f"the share answers {code} for {asked_for}"
            raise TarnError(what, where, "check names and the profile's token") from error
        except ConnectionError as error:
            fix = "check that the server runs and the profile's endpoint is right"
            raise TarnError(f"cannot reach {self.profile.endpoint}", self.where, fix) from error


class _Reading:
    """How one version of a shared table is read, file by file."""

    def __init__(
        self, client: DataSharingRestClient, table: SharedTable, version: int, landed: Landed
    ) -> None:
        self.client, self.table, self.version, self.landed = client, table, version, landed

    def open(self) -> DltResource:
        return dlt.resource(self._batches(), name=self.table.name)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        listed = self.client.list_files_in_table(self.table, version=self.version)
        shared = pa.schema(Schema.from_json(listed.metadata.schema_string).to_arrow())
        names = column_names(shared.names, self.landed.name)
        schema = pa.schema(list(map(_renamed, shared, names)))
        yield pa.RecordBatch.from_pylist([], schema=schema)
        for file in listed.add_files:
            with _downloaded(file) as opened:
                for batch in pq.ParquetFile(opened).iter_batches(batch_size=BATCH_ROWS):
                    yield _complete(batch, file, shared, schema)


def _downloaded(file: AddFile) -> IO[bytes]:
    """The file's bytes in a file of no name: its address expires, and Parquet is read in leaps."""
    opened = TemporaryFile()  # noqa: SIM115
    with requests.get(file.url, stream=True) as answer:
        for chunk in answer.iter_content(_CHUNK):
            opened.write(chunk)
    opened.seek(0, os.SEEK_SET)
    return opened


def _complete(
    batch: pa.RecordBatch, file: AddFile, shared: pa.Schema, schema: pa.Schema
) -> pa.RecordBatch:
    """With the partition columns, which are told beside the file, not in it."""
    columns = [_column(batch, file.partition_values, field) for field in shared]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(batch: pa.RecordBatch, partition: dict[str, Any], field: pa.Field) -> pa.Array:
    if field.name in partition:
        text = pa.array([partition[field.name] or None], pa.string())
        return pa.repeat(exact_cast(text, field.type)[0][0], batch.num_rows)
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    return exact_cast(batch.column(field.name), field.type)[0]


def _renamed(field: pa.Field, name: str) -> pa.Field:
    return pa.field(name, field.type)
