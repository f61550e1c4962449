"""Files in a folder: CSV and Parquet as Arrow batches, JSON as objects.

A file counts as loaded by its path and content. A changed one is loaded again, and where rows
are only appended, its rows take the place of those it gave before. A CSV's header says how many
columns each line has; one with more or fewer ends the load instead of being read as it may.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import dlt
import duckdb
import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dlt.common.storages.fsspec_filesystem import glob_files
from dlt.extract import DltResource, DltSource

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.files import FilesTable
from tarn.ingestion.landed import SOURCE_FILE, Desk, Landed
from tarn.ingestion.ledger import LoadedFile, remember, remembered
from tarn.ingestion.sources import BATCH_ROWS, Extract, Source, column_names
from tarn.settings import Settings
from tarn.storage.duck import identifier, literal, select_from
from tarn.storage.types import loses_nothing

_FORMATS = {
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
    "json": "json",
    "jsonl": "json",
    "ndjson": "json",
}
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class _File:
    """A file as it lies there now."""

    fs: Any
    """The fsspec file system it is in."""
    address: str
    path: str
    """Below the connection's folder."""
    bytes: int
    modified_at: datetime
    """UTC without zone."""

    @cached_property
    def fingerprint(self) -> str:
        if not self._is_local:
            return str(self.fs.checksum(self.address))
        with self.fs.open(self.address) as opened:
            return hashlib.file_digest(opened, "md5").hexdigest()

    def is_same(self, loaded: LoadedFile | None) -> bool:
        """Whether its content is what was loaded. Unread if size and time are the same."""
        if loaded is None or loaded.bytes != self.bytes:
            return False
        return loaded.modified_at == self.modified_at or loaded.fingerprint == self.fingerprint

    @contextmanager
    def in_duckdb(self, desk: Desk) -> Iterator[duckdb.DuckDBPyConnection]:
        with desk.session() as connection:
            if not self._is_local:
                connection.register_filesystem(self.fs)
            yield connection

    @property
    def in_sql(self) -> str:
        return literal(self.address if self._is_local else self.fs.unstrip_protocol(self.address))

    @property
    def _is_local(self) -> bool:
        return "file" in self.fs.protocol


class Files(Source):
    """A folder of files, of which each table takes those its pattern names."""

    secrets: frozenset[str] = frozenset()

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared = declared
        folder = str(declared.system.connection)
        self.root = folder if "://" in folder else str((home.project_dir / folder).resolve())
        self.fs, path = fsspec.core.url_to_fs(self.root)
        if not self.fs.exists(path):
            raise TarnError(
                f"no folder {masked_root(self.root)}",
                declared.file.where("connection"),
                "check the path",
            )

    def extract(self, table: str, landed: Landed) -> Extract | None:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, FilesTable)
        wanted = self._wanted(spec, table, landed)
        if not wanted:
            return None
        reading = _Reading(wanted, self._format(spec, wanted, table), table, landed, spec)
        # Told before they are read: what changes meanwhile is loaded again.
        marks = [(file, file.fingerprint) for file in wanted]

        def note(load_id: str) -> None:
            loaded = [
                LoadedFile(file.path, fingerprint, file.bytes, file.modified_at, load_id)
                for file, fingerprint in marks
            ]
            remember(landed.desk, self.declared.name, table, loaded)

        return Extract(
            reading.open,
            is_objects=reading.format == "json",
            redelivered="true" if spec.primary_key else None,
            spelt=reading.spelt,
            is_changed=True,
            files=self._replaced(spec, wanted, landed),
            remember=note,
        )

    def _wanted(self, spec: FilesTable, table: str, landed: Landed) -> list[_File]:
        """New and changed files; for a table that is replaced all, if any is new, changed, gone."""
        known = remembered(landed.desk, self.declared.name, table) if landed.table else {}
        if spec.write == "replace":
            last = max((file.load_id for file in known.values()), default="")
            known = {path: file for path, file in known.items() if file.load_id == last}
        files = self._listed(spec, table, bool(known))
        changed = [file for file in files if not file.is_same(known.get(file.path))]
        if spec.write != "replace":
            return changed
        gone = set(known) - {file.path for file in files}
        return files if changed or gone else []

    def _listed(self, spec: FilesTable, table: str, was_loaded: bool) -> list[_File]:
        """The files of a table, oldest first: of two rows with a key the newer file's counts."""
        files = [
            _File(
                self.fs,
                self.fs._strip_protocol(item["file_url"]),
                item["relative_path"],
                int(item["size_in_bytes"]),
                item["modification_date"].astimezone(UTC).replace(tzinfo=None),
            )
            for item in glob_files(self.fs, self.root, spec.path)
        ]
        if not files and (not was_loaded or spec.write == "replace"):
            where = self.declared.file.where("tables", table, "path")
            raise TarnError(f"no file matches {spec.path} in {masked_root(self.root)}", where)
        return sorted(files, key=lambda file: (file.modified_at, file.path))

    def _format(self, spec: FilesTable, files: Sequence[_File], table: str) -> str:
        formats = {_FORMATS.get(_suffix(file.path), "") for file in files}
        if spec.format:
            return spec.format
        if len(formats) != 1 or "" in formats:
            where = self.declared.file.where("tables", table, "path")
            raise TarnError("the files' names do not tell one format", where, "add format:")
        return formats.pop()

    def _replaced(
        self, spec: FilesTable, files: Sequence[_File], landed: Landed
    ) -> tuple[str, ...]:
        """The files to write by replacing their rows: all, if the lake has rows of any."""
        if landed.table is None or spec.write != "append" or spec.primary_key:
            return ()
        paths = [file.path for file in files]
        sql = f"""
            select 1 from ({select_from(landed.table)})
            where {identifier(SOURCE_FILE)} in (select unnest($paths)) limit 1
        """
        with landed.desk.session() as connection:
            found = connection.execute(sql, {"paths": paths}).fetchone()
        return tuple(paths) if found else ()


class _Reading:
    """How the files of one table are read."""

    def __init__(
        self, files: Sequence[_File], format: str, table: str, landed: Landed, spec: FilesTable
    ) -> None:
        self.files, self.format, self.table, self.desk = files, format, table, landed.desk
        self.spelt: dict[str, str] = {}
        self.where = landed.name

    def open(self) -> DltResource | DltSource:
        if self.format == "json":
            schema = dlt.Schema(self.table)
            resource = dlt.resource(self._objects(), name=self.table)
            return DltSource(schema, self.table, [resource])
        return dlt.resource(self._batches(), name=self.table)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        schema = self._schema()
        yield pa.RecordBatch.from_pylist([], schema=schema)
        read = self._parquet if self.format == "parquet" else self._csv
        for file in self.files:
            with self._told(file):
                for batch in read(file):
                    yield _fitted(batch, file.path, schema)

    def _schema(self) -> pa.Schema:
        """The columns of all the files; where they differ in type, the widest."""
        fields: dict[str, pa.Field] = {}
        for file in self.files:
            with self._told(file):
                schema = self._schema_of(file)
                for field in schema:
                    fields[field.name] = _wider(fields.get(field.name), field)
        return pa.schema([*fields.values(), (SOURCE_FILE, _ENCODED)])

    def _schema_of(self, file: _File) -> pa.Schema:
        if self.format == "parquet":
            with file.fs.open(file.address) as opened:
                schema = pq.read_schema(opened)
            names = self._spelt(schema.names)
            return pa.schema(list(map(_renamed, schema, names)))
        _, header = _header(file)
        return pa.schema([(name, pa.string()) for name in self._spelt(header)])

    def _spelt(self, header: Sequence[str]) -> list[str]:
        names = column_names(header, self.where)
        self.spelt.update(zip(names, header, strict=True))
        return names

    def _parquet(self, file: _File) -> Iterator[pa.RecordBatch]:
        with file.fs.open(file.address) as opened, pq.ParquetFile(opened) as parquet:
            names = column_names(parquet.schema_arrow.names, self.where)
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                yield batch.rename_columns(names)

    def _csv(self, file: _File) -> Iterator[pa.RecordBatch]:
        delimiter, header = _header(file)
        names = column_names(header, self.where)
        columns = ", ".join(f"{literal(name)}: 'varchar'" for name in names)
        sql = f"""
            from read_csv({file.in_sql}, auto_detect = false, header = true, quote = '"',
                escape = '"', delim = {literal(delimiter)}, columns = {{{columns}}})
        """
        with file.in_duckdb(self.desk) as connection:
            yield from connection.execute(sql).to_arrow_reader(BATCH_ROWS)

    def _objects(self) -> Iterator[list[dict[str, Any]]]:
        for file in self.files:
            with self._told(file), file.in_duckdb(self.desk) as connection:
                result = connection.execute(f"select json from read_json_objects({file.in_sql})")
                while rows := result.fetchmany(1000):
                    yield [self._object(text, file) for (text,) in rows]

    def _object(self, text: str, file: _File) -> dict[str, Any]:
        item = json.loads(text)
        if not isinstance(item, dict):
            raise TarnError(f"{text[:40]} is no JSON object")
        return {**item, SOURCE_FILE: file.path}

    @contextmanager
    def _told(self, file: _File) -> Iterator[None]:
        """Failures name the file."""
        try:
            yield
        except (TarnError, duckdb.Error, pa.ArrowException, OSError, ValueError) as error:
            reason = error.what if isinstance(error, TarnError) else _briefly(error)
            fix = "mend or remove the file; nothing was written"
            raise TarnError(reason, f"{self.where}: {file.path}", fix) from error


_ENCODED = pa.dictionary(pa.int32(), pa.string())


def masked_root(address: str) -> str:
    """The folder without what may follow it in an address."""
    return address.partition("?")[0]


def _suffix(path: str) -> str:
    suffixes = [suffix[1:].lower() for suffix in PurePosixPath(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in ("gz", "zst")), "")


def _header(file: _File) -> tuple[str, list[str]]:
    """A CSV's delimiter and the names of its columns."""
    with file.fs.open(
        file.address, "rt", encoding="utf-8-sig", newline="", compression="infer"
    ) as text:
        first = text.readline()
        delimiter = max(_DELIMITERS, key=first.count)
        text.seek(0)
        names = next(csv.reader(text, delimiter=delimiter), [])
    if not names:
        raise ValueError("the file is empty: it lacks even a header")
    return delimiter, names


def _renamed(field: pa.Field, name: str) -> pa.Field:
    return pa.field(name, field.type)


def _wider(known: pa.Field | None, field: pa.Field) -> pa.Field:
    if known is None or loses_nothing(known.type, field.type):
        return field
    if loses_nothing(field.type, known.type):
        return known
    raise TarnError(f"column {field.name} is {field.type}, but {known.type} in files before")


def _fitted(batch: pa.RecordBatch, path: str, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with all columns of the load, and its file."""
    rows = batch.num_rows
    names = set(batch.schema.names)
    columns = [
        pc.cast(batch.column(field.name), field.type)
        if field.name in names
        else pa.nulls(rows, field.type)
        for field in schema
        if field.name != SOURCE_FILE
    ]
    path_column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), [path])
    return pa.RecordBatch.from_arrays([*columns, path_column], schema=schema)


def _briefly(error: Exception) -> str:
    """Without DuckDB's advice to read the file less strictly."""
    text, _, _ = str(error).partition("Possible")
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
