"""Parquet and Avro: files that say what types their columns have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

from tarn.ingestion.avro_types import ARROW, LOGICAL
from tarn.ingestion.sources import BATCH_ROWS
from tarn.ingestion.sources.files.broken import BrokenFileError


class ParquetFile:
    """Rows in the types of the file."""

    described = "Parquet"
    notes: tuple[str, ...] = ()

    def __init__(self, file: Path) -> None:
        self.file = file
        with file.open("rb") as opened:
            opened.seek(-4, 2)
            if opened.read() != b"PAR1":
                raise BrokenFileError("it ends before its end: the last bytes are not Parquet's")
        self.schema = pq.read_schema(file)

    def batches(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.file) as parquet:
            yield from parquet.iter_batches(batch_size=BATCH_ROWS)

    def check(self) -> None:
        """Read all; raises what is wrong with it."""
        for _ in self.batches():
            pass


class AvroFile:
    """Rows in the types that the file's schema tells."""

    described = "Avro"
    notes: tuple[str, ...] = ()

    def __init__(self, file: Path) -> None:
        self.file = file
        with file.open("rb") as opened:
            told = fastavro.reader(opened).writer_schema
        if not isinstance(told, dict) or told.get("type") != "record":
            raise BrokenFileError("its values are no records")
        self.schema = pa.schema([(each["name"], _arrow(each["type"])) for each in told["fields"]])

    def batches(self) -> Iterator[pa.RecordBatch]:
        with self.file.open("rb") as opened:
            rows: list[dict[str, Any]] = []
            for row in fastavro.reader(opened):
                assert isinstance(row, dict)
                rows.append({name: _plain(value) for name, value in row.items()})
                if len(rows) == BATCH_ROWS:
                    yield pa.RecordBatch.from_pylist(rows, schema=self.schema)
                    rows = []
            yield pa.RecordBatch.from_pylist(rows, schema=self.schema)

    def check(self) -> None:
        """Read all; raises what is wrong with it."""
        for _ in self.batches():
            pass


def _arrow(told: Any) -> pa.DataType:
    """The Arrow type of an Avro type; raises BrokenFileError where there is none."""
    if isinstance(told, list):
        kinds = [kind for kind in told if kind != "null"]
        if len(kinds) != 1:
            raise BrokenFileError(f"a column is a union of {', '.join(map(str, kinds))}")
        return _arrow(kinds[0])
    if isinstance(told, str):
        if told not in ARROW:
            raise BrokenFileError(f"a column is of the named type {told}, used again")
        return ARROW[told]
    kind, logical = told["type"], told.get("logicalType")
    if logical == "decimal":
        return pa.decimal128(told["precision"], told.get("scale", 0))
    if logical in LOGICAL:
        return LOGICAL[logical]
    if kind == "array":
        return pa.list_(_arrow(told["items"]))
    if kind == "map":
        return pa.map_(pa.string(), _arrow(told["values"]))
    if kind == "record":
        return pa.struct([(each["name"], _arrow(each["type"])) for each in told["fields"]])
    return _arrow(kind)


def _plain(value: Any) -> Any:
    """As Arrow takes it: a UUID as text."""
    return str(value) if type(value).__name__ == "UUID" else value
