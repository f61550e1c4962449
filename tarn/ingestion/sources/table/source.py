"""A Delta, Iceberg or Hudi table that others keep, read whole whenever its version has changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dlt
import obstore
import pyarrow as pa
from dlt.extract import DltResource

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.table import ForeignTable
from tarn.ingestion.landed import Landed
from tarn.ingestion.masking import masked
from tarn.ingestion.names import column_names
from tarn.ingestion.sources import Extract, Offered, Source
from tarn.ingestion.sources.table.formats import FORMATS, Place, Reader, conformed, formats_at, utc
from tarn.ingestion.types import landing, shown
from tarn.settings import Settings
from tarn.storage.s3 import S3, unreachable
from tarn.storage.soundness import refusal

_DEPTH = 2
"""So many folders deep `offered` looks for tables."""


class ForeignTables(Source):
    """A folder of tables, here or on S3."""

    secrets: frozenset[str] = frozenset()

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared = declared
        self.where = declared.file.where("connection")
        root = str(declared.system.connection).rstrip("/")
        if "://" not in root:
            self.service, self.root = None, str((home.project_dir / root).resolve())
            return
        if not root.startswith("s3://"):
            what = "tables are read from a folder of this machine or s3://bucket/folder"
            raise TarnError(what, self.where)
        given = {k: v for k, v in home.variables.items() if k.upper().startswith("AWS_")}
        self.service, self.root = S3(given), root
        keys = self.service.keys()
        self.secrets = frozenset(key for key in (keys.secret, keys.token) if key)

    def extract(self, table: str, landed: Landed) -> Extract | None:
        where = f"{landed.name} ({self.declared.file.where('tables', table)})"
        with self._told(where):
            place, name, reader = self._opened(table)
        mark = f"{name}:{place.address}"
        if landed.table is not None and landed.table.transaction_version(mark) == reader.version:
            return None

        def batches() -> Iterator[pa.RecordBatch]:
            with self._told(where):
                yield from _renamed(reader, where)

        def resource() -> DltResource:
            return dlt.resource(batches(), name=table)

        return Extract(resource, is_changed=True, transaction=(mark, reader.version))

    def check(self) -> list[str]:
        """Format, version and width of each table."""
        lines = []
        for table in self.declared.system.tables:
            with self._told(self.declared.file.where("tables", table)):
                _, name, reader = self._opened(table)
            width = len(reader.schema)
            lines.append(f"{table}: {name} table at version {reader.version}, {width} columns")
        return lines

    def offered(self) -> list[Offered]:
        """The tables in the folder and in the folders below it."""
        with self._told(self.where):
            return [self._offer(path, name) for path, name in self._found("", _DEPTH)]

    def _found(self, path: str, depth: int) -> Iterator[tuple[str, str]]:
        place = Place(f"{self.root}/{path}".rstrip("/"), self.service)
        if formats := formats_at(place):
            yield path, formats[0]
        elif depth:
            folders = obstore.list_with_delimiter(place.objects)["common_prefixes"]
            for folder in sorted(str(each).rstrip("/") for each in folders):
                yield from self._found(f"{path}/{folder}".lstrip("/"), depth - 1)

    def _offer(self, path: str, name: str) -> Offered:
        reader = FORMATS[name](Place(f"{self.root}/{path}".rstrip("/"), self.service), None, None)
        names = column_names(reader.schema.names, path)
        types = [shown(landing(field, path)) for field in reader.schema]
        spec: dict[str, Any] = {"path": path, "format": name, "write": "replace"}
        if reader.keys:
            spec["primary_key"] = column_names(reader.keys, path)
        (key,) = column_names([path.rpartition("/")[2] or self.root.rpartition("/")[2]], path)
        return Offered(key, spec, dict(zip(names, types, strict=True)))

    def _opened(self, table: str) -> tuple[Place, str, Reader]:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, ForeignTable)
        path = table if spec.path is None else spec.path
        place = Place(f"{self.root}/{path}".rstrip("/"), self.service)
        name = spec.format or _only(formats_at(place), path)
        as_of = utc(spec.as_of) if spec.as_of else None
        return place, name, FORMATS[name](place, spec.version, as_of)

    @contextmanager
    def _told(self, where: str) -> Iterator[None]:
        """What a library says of a table it cannot read, with the place."""
        try:
            yield
        except TarnError as error:
            raise TarnError(error.what, error.where or where, error.fix) from error
        except GeneratorExit:
            raise
        except BaseException as error:
            # A panic of Rust code is no Exception.
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            if self.service and isinstance(error, Exception):
                told = unreachable(error, self.root, self.service.endpoint)
                if told is not None:
                    raise told from error
            said = masked(refusal("", error).what.partition(": ")[2], self.secrets)
            fix = "nothing was written; check the path and version, or upgrade Tarn"
            raise TarnError(f"cannot read the table: {said}", where, fix) from error


def _only(formats: Sequence[str], path: str) -> str:
    if len(formats) == 1:
        return formats[0]
    if not formats:
        raise TarnError(f"no Delta, Iceberg or Hudi table at {path or '.'}", fix="check the path")
    told = " and ".join(formats)
    raise TarnError(f"the folder holds the table as {told}", fix="say which under format:")


def _renamed(reader: Reader, where: str) -> Iterator[pa.RecordBatch]:
    names = column_names(reader.schema.names, where)
    yield pa.RecordBatch.from_pylist([], schema=reader.schema).rename_columns(names)
    for batch in reader.batches():
        yield conformed(batch, reader.schema).rename_columns(names)
