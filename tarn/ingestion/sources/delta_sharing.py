"""Tables shared by the Delta Sharing protocol, read whole whenever their version has changed.

A table that needs more than Parquet files, deletion vectors or column mapping, is asked for in the
protocol's Delta form; each of its files is then read as a small Delta table of its own.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.parquet as pq
from delta_sharing.protocol import DeltaSharingProfile, Schema, Share
from delta_sharing.protocol import Table as SharedTable
from delta_sharing.rest_client import DataSharingRestClient
from deltalake import Schema as DeltaSchema
from dlt.extract import DltResource
from dlt.sources.helpers import requests
from requests.adapters import HTTPAdapter  # type: ignore[import-untyped]
from requests.exceptions import HTTPError, RequestException  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.delta_sharing import SharingTable
from tarn.ingestion.landed import Landed
from tarn.ingestion.masking import secrets_in
from tarn.ingestion.names import column_names
from tarn.ingestion.sources import BATCH_ROWS, Extract, Offered, Source
from tarn.ingestion.sources.table.formats import conformed, queried
from tarn.ingestion.types import exact_cast, landing, shown
from tarn.settings import Settings
from tarn.storage.duck import literal
from tarn.storage.lake import Lake
from tarn.strict_yaml import nearest

_RETRIES = 4
_SECONDS = 60
_CHUNK = 1 << 20
_EXPIRED = (400, 401, 403)
"""What a store answers for an address whose time is over."""


class DeltaSharing(Source):
    """A share, opened by its profile file."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared = declared
        self.where = declared.file.where("connection")
        path = home.project_dir / str(declared.system.connection)
        try:
            text = path.read_text(encoding="utf-8")
            self.secrets = frozenset(secrets_in(json.loads(text)))
            self.profile = DeltaSharingProfile.from_json(text)
        except OSError as error:
            what = f"no profile file {declared.system.connection}"
            raise TarnError(what, self.where, "check the path") from error
        except KeyError as error:
            what = f"no Delta Sharing profile: {error} is missing in it"
            raise TarnError(what, self.where) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise TarnError(f"no Delta Sharing profile: {error}", self.where) from error
        _check_time(self.profile, self.where)
        if self.profile.private_key:
            self.profile = self._with_key_beside(path)

    def _with_key_beside(self, path: Path) -> DeltaSharingProfile:
        """The key's file is named from the profile's folder."""
        named = str(self.profile.private_key["privateKeyFile"])
        file = path.parent / named
        if not file.is_file():
            raise TarnError(f"no file {named}, the profile's private key", self.where)
        key = {**self.profile.private_key, "privateKeyFile": str(file)}
        return replace(self.profile, private_key=key)

    @cached_property
    def client(self) -> DataSharingRestClient:
        profile = self.profile
        if profile.type == "bearer_token":
            # The client knows it as the only type of the first version.
            profile = replace(profile, share_credentials_version=1, type=None)
        client = DataSharingRestClient(profile, num_retries=_RETRIES)
        for scheme in ("http://", "https://"):
            client._session.mount(scheme, _Patient())
        return client

    def extract(self, table: str, landed: Landed) -> Extract | None:
        shared = self._shared(table)
        name = f"{shared.share}.{shared.schema}.{shared.name}"
        with self._told(shared, table):
            version = int(self.client.query_table_version(shared).delta_table_version)
            mark = f"delta_sharing:{name}"
            if landed.table is not None and landed.table.transaction_version(mark) == version:
                return None
            given = _listed(self.client, shared)
        reading = _Reading(self.client, shared, given, landed.name)
        return Extract(reading.open, is_changed=True, transaction=(mark, given.version))

    def check(self) -> list[str]:
        """What each table is, and how much else is shared."""
        with self._told(None):
            known = list(self._known())
        shares = ", ".join(sorted({each.share for each in known})) or "no share"
        lines = [f"{self.profile.endpoint}: {len(known)} tables in {shares}"]
        for table in self.declared.system.tables:
            shared = self._shared(table)
            with self._told(shared, table):
                given = _listed(self.client, shared)
            form = "Delta" if given.is_delta else "Parquet"
            lines.append(
                f"{table}: version {given.version}, {len(given.schema)} columns,"
                f" {len(given.files)} files as {form}"
            )
        return lines

    def offered(self) -> list[Offered]:
        """All tables of all shares."""
        with self._told(None):
            known = list(self._known())
        names = [each.name.lower() for each in known]
        return [self._offer(each, names.count(each.name.lower()) == 1) for each in known]

    def _offer(self, shared: SharedTable, is_alone: bool) -> Offered:
        path = [shared.name] if is_alone else [shared.share, shared.schema, shared.name]
        (key,) = column_names(["_".join(path)], shared.name)
        spec = {"share": shared.share, "schema": shared.schema, "write": "replace"}
        if key != shared.name:
            spec["table"] = shared.name
        with self._told(shared):
            given = _listed(self.client, shared, rows=False)
        names = column_names(given.schema.names, shared.name)
        types = [shown(landing(field, shared.name)) for field in given.schema]
        columns = dict(zip(names, types, strict=True))
        return Offered(key, spec, columns, given.metadata.get("description") or "")

    def _shared(self, table: str) -> SharedTable:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, SharingTable)
        return SharedTable(spec.table or table, spec.share, spec.shared_schema)

    def _known(self) -> Iterator[SharedTable]:
        for share in _pages(self.client.list_shares, "shares"):
            try:
                yield from _pages(self.client.list_all_tables, "tables", share)
            except HTTPError as error:
                # Older servers list schema by schema only.
                if error.response is None or error.response.status_code not in (404, 405, 501):
                    raise
                yield from self._by_schema(share)

    def _by_schema(self, share: Share) -> Iterator[SharedTable]:
        schemas: Iterator[Schema] = _pages(self.client.list_schemas, "schemas", share)
        for schema in schemas:
            yield from _pages(self.client.list_tables, "tables", schema)

    @contextmanager
    def _told(self, shared: SharedTable | None, table: str | None = None) -> Iterator[None]:
        """What the server says, in words."""
        where = self.declared.file.where("tables", table) if table else self.where
        try:
            yield
        except HTTPError as error:
            code = error.response.status_code if error.response is not None else "?"
            name = f"{shared.share}.{shared.schema}.{shared.name}" if shared else "its listing"
            what = f"the share answers {code} for {name}{self._nearest(code, shared)}"
            raise TarnError(what, where, "check names and the profile's token") from error
        except RequestException as error:
            fix = "check that the server runs and the profile's endpoint is right"
            raise TarnError(f"cannot reach {self.profile.endpoint}", self.where, fix) from error
        except (LookupError, ValueError, StopIteration, RuntimeError) as error:
            what = f"{self.profile.endpoint} does not answer as Delta Sharing does: {error}"
            raise TarnError(what, where, "check the profile's endpoint") from error

    def _nearest(self, code: object, shared: SharedTable | None) -> str:
        if code != 404 or shared is None:
            return ""
        try:
            known = [f"{each.share}.{each.schema}.{each.name}" for each in self._known()]
        except (RequestException, LookupError, ValueError):
            return ""
        return nearest(f"{shared.share}.{shared.schema}.{shared.name}", known[:50])


class _Patient(HTTPAdapter):  # type: ignore[misc]
    """Waits for an answer, but not for ever."""

    def send(self, request: Any, **options: Any) -> Any:
        return super().send(request, **{**options, "timeout": _SECONDS})


def _check_time(profile: DeltaSharingProfile, where: str) -> None:
    try:
        ends = datetime.fromisoformat(profile.expiration_time or "")
    except ValueError:
        return
    ends = ends if ends.tzinfo else ends.replace(tzinfo=UTC)
    if ends < datetime.now(UTC):
        what = f"the profile expired at {profile.expiration_time}"
        raise TarnError(what, where, "ask who shares the tables for a new profile")


def _pages(ask: Callable[..., Any], items: str, *of: Any) -> Iterator[Any]:
    mark = None
    while True:
        page = ask(*of, page_token=mark)
        yield from getattr(page, items)
        mark = page.next_page_token
        if not mark:
            return


@dataclass(frozen=True)
class _File:
    """A file as the server gives it out. The addresses expire."""

    url: str
    id: str
    size: int
    partition_values: Mapping[str, str | None]
    action: Mapping[str, Any] | None
    """Its entry in a Delta log, where the table needs one."""


@dataclass(frozen=True)
class _Given:
    """A shared table at one version."""

    version: int
    protocol: Mapping[str, Any]
    metadata: Mapping[str, Any]
    files: Sequence[_File]
    is_delta: bool

    @property
    def schema(self) -> pa.Schema:
        fields = pa.schema(DeltaSchema.from_json(self.metadata["schemaString"]).to_arrow())
        return pa.schema([(field.name, field.type) for field in fields])


def _listed(client: DataSharingRestClient, shared: SharedTable, rows: bool = True) -> _Given:
    """The table as it is now, in the form it needs. Not every table may be asked for a version."""
    path = f"/shares/{shared.share}/schemas/{shared.schema}/tables/{shared.name}"
    client.set_sharing_capabilities_header()
    try:
        ask = client._post_internal if rows else client._get_internal
        target = f"{path}/query" if rows else f"{path}/metadata"
        with ask(target, {} if rows else None, return_headers=True) as (headers, lines):
            version = int(headers[client.DELTA_TABLE_VERSION_HEADER])
            told = [json.loads(line) for line in lines if line]
    finally:
        client.remove_sharing_capabilities_header()
    protocol, metadata = told[0]["protocol"], told[1]["metaData"]
    is_delta = "deltaProtocol" in protocol
    given = _Given(
        version,
        protocol["deltaProtocol"] if is_delta else protocol,
        metadata["deltaMetadata"] if is_delta else metadata,
        [_file(line["file"]) for line in told[2:] if "file" in line],
        is_delta,
    )
    if unread := _unread(given):
        raise TarnError(
            unread,
            f"{shared.share}.{shared.schema}.{shared.name}",
            "nothing was read; ask who shares it to drop that feature of the table",
        )
    return given


def _unread(given: _Given) -> str | None:
    """What of a table would be read wrongly."""
    is_mapped = given.metadata.get("configuration", {}).get("delta.columnMapping.mode", "none")
    if not given.is_delta and (int(given.protocol["minReaderVersion"]) > 1 or is_mapped != "none"):
        return "the table needs a newer reader, and the server gives it out as plain Parquet"
    if is_mapped != "none" and given.metadata.get("partitionColumns"):
        return "column mapping in a partitioned table: DuckDB reads its partition columns as null"
    return None


def _file(told: Mapping[str, Any]) -> _File:
    action = told.get("deltaSingleAction")
    if action is None:
        return _File(told["url"], told["id"], told["size"], told["partitionValues"], None)
    add = action["add"]
    return _File(add["path"], told["id"], add["size"], add["partitionValues"], add)


class _Reading:
    """How one version of a shared table is read, file by file."""

    def __init__(
        self, client: DataSharingRestClient, table: SharedTable, given: _Given, where: str
    ) -> None:
        self.client, self.table, self.given, self.where = client, table, given, where

    def open(self) -> DltResource:
        return dlt.resource(self._batches(), name=self.table.name)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        shared = self.given.schema
        names = column_names(shared.names, self.where)
        schema = pa.schema([(new, field.type) for new, field in zip(names, shared, strict=True)])
        yield pa.RecordBatch.from_pylist([], schema=schema)
        for file in self.given.files:
            with TemporaryDirectory() as folder:
                data = Path(folder) / "data.parquet"
                fresh = self._fetch(file, data)
                read = self._as_delta if fresh.action else self._as_parquet
                for batch in read(fresh, data, shared):
                    yield batch.rename_columns(names)

    def _as_parquet(self, file: _File, data: Path, shared: pa.Schema) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(data) as opened:
            for batch in opened.iter_batches(batch_size=BATCH_ROWS):
                columns = [_column(batch, file.partition_values, field) for field in shared]
                yield pa.RecordBatch.from_arrays(columns, schema=shared)

    def _as_delta(self, file: _File, data: Path, shared: pa.Schema) -> Iterator[pa.RecordBatch]:
        assert file.action is not None
        add = {**file.action, "path": data.name}
        vector = add.get("deletionVector")
        if vector and vector["storageType"] == "p":
            here = data.with_name("vector.bin")
            _download(vector["pathOrInlineDv"], here)
            add["deletionVector"] = {**vector, "pathOrInlineDv": here.as_uri()}
        actions = [{"protocol": self.given.protocol}, {"metaData": self.given.metadata}]
        log = data.with_name("_delta_log")
        log.mkdir()
        text = "".join(f"{json.dumps(action)}\n" for action in [*actions, {"add": add}])
        (log / f"{0:020}.json").write_text(text)
        # Not by delta-rs, whose writer may be waiting for this very row.
        folder = str(data.parent)
        for batch in queried(Lake(folder), f"select * from delta_scan({literal(folder)})"):
            yield conformed(batch, shared)

    def _fetch(self, file: _File, target: Path) -> _File:
        """Put a file's bytes there. An address whose time is over is asked for again."""
        try:
            _download(file.url, target)
        except HTTPError as error:
            if error.response is None or error.response.status_code not in _EXPIRED:
                raise
            now = _listed(self.client, self.table)
            again = next((each for each in now.files if each.id == file.id), None)
            if again is None or now.version != self.given.version:
                what = "the table changed while it was read, and its addresses have expired"
                raise TarnError(what, self.where, "nothing was written; load again") from error
            file = again
            _download(file.url, target)
        if (size := os.path.getsize(target)) != file.size:
            what = f"a file of the share was cut: {size} bytes came of {file.size}"
            raise TarnError(what, self.where, "nothing was written; load again")
        return file


def _download(url: str, target: Path) -> None:
    with requests.get(url, stream=True, timeout=_SECONDS) as answer, target.open("wb") as opened:
        answer.raise_for_status()
        for chunk in answer.iter_content(_CHUNK):
            opened.write(chunk)


def _column(
    batch: pa.RecordBatch, partition: Mapping[str, str | None], field: pa.Field
) -> pa.Array:
    """Partition columns are told beside the file, not in it; what an older file lacks is null."""
    if field.name in partition:
        text = pa.array([partition[field.name] or None], pa.string())
        return pa.repeat(exact_cast(text, field.type)[0][0], batch.num_rows)
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    return exact_cast(batch.column(field.name), field.type)[0]
