"""Pictures and sounds as rows of a catalogue; the bytes stay where they are.

Only files of a new size or time are opened. What cannot be catalogued is quarantined with the
reason, and does not stop the rest.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import dlt
import pyarrow as pa
from dlt.extract import DltResource

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.media import MediaTable
from tarn.ingestion.landed import Landed
from tarn.ingestion.ledger import LoadedFile, remember, remembered
from tarn.ingestion.masking import masked, secrets_in
from tarn.ingestion.sources import BATCH_ROWS, Extract, Offered, Rejected, Source
from tarn.ingestion.sources.files.places import Place, place
from tarn.ingestion.sources.media.probe import (
    NotMediaError,
    described,
    extension_matches,
    media_type,
)
from tarn.ingestion.types import shown
from tarn.settings import Settings
from tarn.storage.clock import now

_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "media_type": pa.string(),
        "extension_matches": pa.bool_(),
        "bytes": pa.int64(),
        "sha256": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "duration_seconds": pa.float64(),
        "tags": pa.string(),
        "modified_at": pa.timestamp("us"),
        "is_gone": pa.bool_(),
    }
)
_BATCH = 200
"""Files whose rows are held at a time: tags may be long."""


@dataclass(frozen=True)
class _File:
    """A file as it was listed."""

    place: Place
    path: str
    """Below the connection's folder."""
    size: int
    modified_at: datetime
    """UTC without zone."""

    def is_same(self, known: LoadedFile | None) -> bool:
        return (
            known is not None and known.bytes == self.size and known.modified_at == self.modified_at
        )

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file, to be read in leaps: a distant one is fetched once."""
        with (
            TemporaryDirectory() as folder,
            self.place.fetch(self.path, Path(folder) / "file").open("rb") as here,
        ):
            yield here


class Media(Source):
    """A folder of pictures and sounds, of which each table lists those its pattern names."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared = declared
        self.root = str(declared.system.connection)
        self.secrets = frozenset(secrets_in(self.root))
        self.place = place(self.root, home, declared.file.where("connection"))

    def extract(self, table: str, landed: Landed) -> Extract | None:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, MediaTable)
        known = remembered(landed.desk, self.declared.name, table) if landed.table else {}
        files = self._listed(spec.path)
        if not files and not known:
            what = f"no file matches {spec.path} in {masked(self.root)}"
            raise TarnError(what, self.declared.file.where("tables", table, "path"))
        changed = [file for file in files if not file.is_same(known.get(file.path))]
        there = {file.path for file in files}
        gone = [path for path, file in known.items() if file.bytes >= 0 and path not in there]
        if not changed and not gone:
            return None
        reading = _Reading(table, changed, gone, landed, spec.write == "replace")

        def note(load_id: str) -> None:
            # A file that comes back is a new one, so one that is gone has no size.
            lost = [LoadedFile(path, "", -1, now(), load_id) for path in gone]
            remember(landed.desk, self.declared.name, table, [*reading.read(load_id), *lost])

        return Extract(reading.open, is_unique=True, is_changed=True, remember=note)

    def check(self) -> list[str]:
        """How many files each table would list."""
        return [
            f"{name}: {len(self._listed(spec.path)):,} files match {spec.path}"
            for name, spec in self.declared.system.tables.items()
            if isinstance(spec, MediaTable)
        ]

    def offered(self) -> list[Offered]:
        """A table for each folder that lies in the connection's, else one for all files."""
        columns = {field.name: shown(field.type) for field in _SCHEMA}
        names = {found.path.partition("/")[0] for found in self.place.list("*/**/*")}
        patterns = {name: f"{name}/**/*" for name in sorted(names)} or {"files": "*"}
        return [Offered(name, {"path": path}, columns) for name, path in patterns.items()]

    def _listed(self, pattern: str) -> list[_File]:
        found = sorted(self.place.list(pattern), key=lambda each: each.path)
        return [_File(self.place, each.path, each.bytes, each.modified_at) for each in found]


class _Reading:
    """How the rows of one table come about."""

    def __init__(
        self,
        table: str,
        changed: Sequence[_File],
        gone: Sequence[str],
        landed: Landed,
        is_replaced: bool,
    ) -> None:
        self.table, self.changed, self.gone = table, changed, set(gone)
        self.landed, self.is_replaced = landed, is_replaced
        self.sums: dict[str, str] = {}

    def open(self) -> DltResource:
        return dlt.resource(self._items(), name=self.table)

    def read(self, load_id: str) -> Iterator[LoadedFile]:
        """The files whose content was seen, as they were listed before they were read."""
        for file in self.changed:
            if file.path in self.sums:
                sha256 = self.sums[file.path]
                yield LoadedFile(file.path, sha256, file.size, file.modified_at, load_id)

    def _items(self) -> Iterator[pa.RecordBatch | Rejected]:
        yield pa.RecordBatch.from_pylist([], schema=_SCHEMA)
        broken = set()
        rows: list[dict[str, Any]] = []
        for file in self.changed:
            item = self._catalogued(file)
            if isinstance(item, Rejected):
                broken.add(file.path)
                yield item
                continue
            rows.append(item)
            if len(rows) == _BATCH:
                yield pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)
                rows = []
        yield pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)
        if self.landed.table is not None:
            yield from self._known(broken)

    def _catalogued(self, file: _File) -> dict[str, Any] | Rejected:
        row: dict[str, Any] = {"path": file.path, "bytes": file.size}
        row["modified_at"] = file.modified_at
        try:
            with file.opened() as opened:
                row["sha256"] = hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]
                self.sums[file.path] = row["sha256"]
                size = opened.seek(0, os.SEEK_END)
                kind = media_type(opened)
                row |= {"media_type": kind, "extension_matches": extension_matches(kind, file.path)}
                row |= described(opened, kind, size)
        except (NotMediaError, OSError) as error:
            return Rejected(row, str(error), file.path)
        return {**row, "is_gone": False}

    def _known(self, broken: set[str]) -> Iterator[pa.RecordBatch]:
        """Rows of the lake: for a replaced table those of files that are as they were, else those
        of files that are gone or broken now, with a mark."""
        lost = [*self.gone, *broken]
        again = [*lost, *(file.path for file in self.changed)]
        chosen, paths = "not in", again
        if not self.is_replaced:
            chosen, paths = "in", lost
        gone = "is_gone" if self.is_replaced else "true as is_gone"
        columns = ", ".join(name for name in _SCHEMA.names if name != "is_gone")
        sql = f"""
            select {columns}, {gone} from ({self.landed.select})
            where path {chosen} (select unnest($paths)) and not is_gone
        """
        with self.landed.desk.session() as connection:
            found = connection.execute(sql, {"paths": paths}).to_arrow_reader(BATCH_ROWS)
            for batch in found:
                yield batch.cast(_SCHEMA)
