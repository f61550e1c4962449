"""How the files of one table become its rows: opened and checked first, then read one by one."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import dlt
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from dlt.extract import DltResource, DltSource

from tarn.errors import TarnError
from tarn.ingestion.declarations.files import FilesTable
from tarn.ingestion.landed import PLACE, SOURCE_FILE
from tarn.ingestion.names import column_names
from tarn.ingestion.sources import ReadAgainError, Rejected
from tarn.ingestion.sources.files.broken import BrokenFileError
from tarn.ingestion.sources.files.columnar import AvroFile, ParquetFile
from tarn.ingestion.sources.files.contents import Content, unpacked
from tarn.ingestion.sources.files.csv.table import Options, TextTable
from tarn.ingestion.sources.files.excel import Sheet
from tarn.ingestion.sources.files.objects import JsonFile
from tarn.ingestion.sources.files.places import Found, Place
from tarn.ingestion.sources.files.text import in_utf8
from tarn.storage.types import loses_nothing

_ENCODED = pa.dictionary(pa.int32(), pa.string())
_PAGE = 1000
_MOST_TOLD = 5
Part: TypeAlias = TextTable | ParquetFile | AvroFile | Sheet | JsonFile


@dataclass(frozen=True)
class Opened:
    """What one file holds, checked: usually one part, of an archive several."""

    found: Found
    parts: Sequence[Part]
    names: Sequence[str]
    """Of the parts, in messages."""
    schema: pa.Schema
    """Columns as the lake spells them; of JSON none."""


class Copy:
    """A file's bytes where they can be read."""

    def __init__(self, place: Place, found: Found, scratch: Path) -> None:
        self.place, self.found, self.scratch = place, found, scratch

    @cached_property
    def file(self) -> Path:
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self.place.fetch(self.found.path, self.scratch / "fetched")

    @cached_property
    def fingerprint(self) -> str:
        if self.found.tag:
            return self.found.tag
        with self.file.open("rb") as opened:
            return hashlib.file_digest(opened, "md5").hexdigest()

    def is_unchanged(self) -> bool:
        """Whether the file still is what was listed; what was fetched is whole."""
        if self.place.is_local:
            return self.place.look(self.found.path) == self.found
        return self.found.bytes in (-1, self.file.stat().st_size)


class Reading:
    """The files of one table in one load."""

    def __init__(
        self, table: str, format: str, spec: FilesTable, where: str, wanted: pa.Schema | None
    ) -> None:
        self.table, self.format, self.spec, self.where = table, format, spec, where
        self.wanted = wanted
        self.files: list[Opened] = []
        self.copies: dict[str, Copy] = {}
        self.broken: dict[str, str] = {}
        """Why files are not read, by path."""
        self.paths: list[str] = []
        """Of the files that are read."""
        self.notes: list[str] = []
        self.spelt: dict[str, str] = {}

    def take(self, copy: Copy) -> None:
        """Open and check a file; what is wrong with it is kept."""
        path = copy.found.path
        self.copies[path] = copy
        try:
            with _told():
                opened = self._opened(copy)
        except BrokenFileError as error:
            self.broken[path] = str(error)
            self.notes.append(f"{path} is broken: {error}")
            return
        self.files.append(opened)
        self.paths.append(path)
        for part in opened.parts:
            self.notes += [f"{path}: {note}" for note in getattr(part, "notes", ())]

    def check_some_left(self) -> None:
        """Raise TarnError if all files are broken."""
        if self.files or not self.broken:
            return
        told = [f"{path}: {why}" for path, why in list(self.broken.items())[:_MOST_TOLD]]
        more = len(self.broken) - len(told)
        what = "; ".join(told) + (f"; and {more} more" if more else "")
        raise TarnError(what, self.where, "mend or remove the file; nothing was written")

    def open(self) -> DltResource | DltSource:
        if self.format == "json":
            resource = dlt.resource(self._objects(), name=self.table)
            return DltSource(dlt.Schema(self.table), self.table, [resource])
        return dlt.resource(self._batches(), name=self.table)

    def _opened(self, copy: Copy) -> Opened:
        path = copy.found.path
        copy.scratch.mkdir(parents=True, exist_ok=True)
        parts, names = [], []
        for content in unpacked(copy.file, path, self.format, copy.scratch):
            parts.append(self._part(content, path, copy.scratch))
            names.append(content.name)
        schema = self._schema_of(parts)
        required = [*self.spec.primary_key, *self.spec.contract.required]
        gone = [name for name in required if name not in schema.names]
        if gone and self.format != "json":
            raise BrokenFileError(f"no column {', '.join(gone)}")
        return Opened(copy.found, parts, names, schema)

    def _part(self, content: Content, path: str, scratch: Path) -> Part:
        if self.format == "parquet":
            return ParquetFile(content.file)
        if self.format == "avro":
            return AvroFile(content.file)
        if self.format == "excel":
            at = self.spec.excel
            sheet = Sheet(content.file, content.name, path, at.sheet, at.header_row, self.wanted)
            sheet.check()
            return sheet
        told = self.spec.csv
        file, guessed = in_utf8(content.file, told.encoding, scratch, self.format == "csv")
        if guessed:
            self.notes.append(f"{content.name}: read as {guessed}, for it is not UTF-8")
        if self.format == "json":
            return JsonFile(file, content.name, path)
        options = Options(told.delimiter, told.quote, told.escape, told.header_row, told.columns)
        return TextTable(file, content.name, path, options, scratch)

    def _schema_of(self, parts: Sequence[Part]) -> pa.Schema:
        fields: dict[str, pa.Field] = {}
        for part in parts:
            if isinstance(part, JsonFile):
                continue
            if isinstance(part, TextTable):
                found = pa.schema([(name, pa.string()) for name in part.names])
            else:
                found = part.schema
            names = column_names(found.names, self.where)
            self.spelt.update(zip(names, found.names, strict=True))
            for name, field in zip(names, found, strict=True):
                fields[name] = _wider(fields.get(name), pa.field(name, field.type))
        return pa.schema(list(fields.values()))

    def _schema(self) -> pa.Schema:
        """The columns of all the files; where they differ in type, the widest."""
        fields: dict[str, pa.Field] = {}
        for opened in self.files:
            for field in opened.schema:
                try:
                    fields[field.name] = _wider(fields.get(field.name), field)
                except TarnError as error:
                    raise TarnError(error.what, f"{self.where}: {opened.found.path}") from error
        extra = [pa.field(SOURCE_FILE, _ENCODED), pa.field(PLACE, pa.string())]
        return pa.schema([*fields.values(), *extra])

    def _batches(self) -> Iterator[pa.RecordBatch | Rejected]:
        schema = self._schema()
        yield from self._rejected()
        if not self.files:
            return
        yield pa.RecordBatch.from_pylist([], schema=schema)
        for opened in list(self.files):
            with self._watched(opened):
                for part, name in zip(opened.parts, opened.names, strict=True):
                    yield from self._fitted(part, name, opened, schema)

    def _fitted(
        self, part: Part, name: str, opened: Opened, schema: pa.Schema
    ) -> Iterator[pa.RecordBatch | Rejected]:
        assert not isinstance(part, JsonFile)
        rows = 0
        for item in part.batches():
            if isinstance(item, Rejected):
                yield item
                continue
            if PLACE not in item.schema.names:
                item = item.append_column(PLACE, _numbered(name, rows, item.num_rows))
                rows += item.num_rows
            yield _fitted(item, opened.found.path, schema, self.where)

    def _objects(self) -> Iterator[list[Any]]:
        yield list(self._rejected())
        for opened in self.files:
            page: list[Any] = []
            for part in opened.parts:
                assert isinstance(part, JsonFile)
                for item in part.items():
                    page.append(item)
                    if len(page) == _PAGE:
                        yield page
                        page = []
            yield page
            if not self.copies[opened.found.path].is_unchanged():
                raise TarnError("it has changed while it was read", opened.found.path, "load again")

    def _rejected(self) -> Iterator[Rejected]:
        for path, why in self.broken.items():
            yield Rejected({SOURCE_FILE: path}, f"the file is broken: {why}", path)

    @contextmanager
    def _watched(self, opened: Opened) -> Iterator[None]:
        """A file that turns out to be broken, or that changes, is left out from the beginning."""
        path = opened.found.path
        why: str | None = None
        try:
            with _told():
                yield
        except BrokenFileError as error:
            why = str(error)
        if not self.copies[path].is_unchanged():
            self._leave_out(path)
            del self.copies[path]
            self.notes.append(f"{path} has changed while it was read: left for the next load")
        elif why is None:
            return
        else:
            self._leave_out(path)
            self.broken[path] = why
            self.notes.append(f"{path} is broken: {why}")
            self._check_others(path)
            self.check_some_left()
        if self.spec.write == "replace":
            raise TarnError(self.notes[-1], self.where, "nothing was written; load again")
        raise ReadAgainError

    def _check_others(self, path: str) -> None:
        """Find all that are broken at once, to begin anew only once."""
        for other in list(self.files):
            try:
                with _told():
                    for part in other.parts:
                        if isinstance(part, ParquetFile | AvroFile):
                            part.check()
            except BrokenFileError as error:
                self._leave_out(other.found.path)
                self.broken[other.found.path] = str(error)
                self.notes.append(f"{other.found.path} is broken: {error}")

    def _leave_out(self, path: str) -> None:
        self.files = [each for each in self.files if each.found.path != path]
        self.paths.remove(path)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever a reader raises for a file says that it is broken."""
    try:
        yield
    except (BrokenFileError, GeneratorExit):
        raise
    except TarnError as error:
        raise BrokenFileError(error.what) from error
    except MemoryError:
        raise
    except (
        duckdb.Error,
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        RecursionError,
        BadZipFile,
        AttributeError,
        ArithmeticError,
    ) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise BrokenFileError(f"it cannot be read: {text}") from error


def _numbered(name: str, before: int, rows: int) -> pa.Array:
    numbers = pa.arange(before + 1, before + rows + 1).cast(pa.string())
    return pc.binary_join_element_wise(pa.scalar(f"{name}:row "), numbers, "")


def _wider(known: pa.Field | None, field: pa.Field) -> pa.Field:
    if known is None or loses_nothing(known.type, field.type) or pa.types.is_null(known.type):
        return field
    if loses_nothing(field.type, known.type) or pa.types.is_null(field.type):
        return known
    raise TarnError(f"column {field.name} is {field.type}, but {known.type} in files before")


def _fitted(batch: pa.RecordBatch, path: str, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """The batch with all columns of the load, its file, and where its rows stand."""
    own = [name for name in batch.schema.names if name != PLACE]
    columns: Mapping[str, pa.Array] = dict(
        zip(
            [*column_names(own, where), PLACE],
            [batch.column(n) for n in [*own, PLACE]],
            strict=True,
        )
    )
    rows = batch.num_rows
    file = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), [path])
    fitted = [
        file
        if field.name == SOURCE_FILE
        else pc.cast(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(fitted, schema=schema)
