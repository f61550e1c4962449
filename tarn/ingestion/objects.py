"""Objects of unknown shape made into tables by dlt: lists in a row become child tables.

dlt works in a folder that is thrown away. A row's `_dlt_id` is a hash of all that was delivered
of it, children included: a row whose `_dlt_id` the lake has is the same row, and children belong
to one version of their row. Text stays text: dlt's guess at timestamps is off.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.parquet as pq
from dlt.common.normalizers.naming.snake_case import NamingConvention
from dlt.common.schema.typing import TTableSchema
from dlt.extract import DltSource

from tarn.ingestion.landed import PLACE, SOURCE_FILE, Desk
from tarn.ingestion.sources import BATCH_ROWS, Rejected
from tarn.ingestion.types import named
from tarn.storage.duck import literal, quoted

ID = "_dlt_id"
ROOT_ID = "_dlt_root_id"
_LOAD = "_dlt_load_id"
_NAMING = NamingConvention()
_NUMBERS = ("bigint", "double")


@dataclass(frozen=True)
class Unpacked:
    """A table as dlt left it: Parquet files."""

    name: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    """SQL of each column."""
    types: Mapping[str, pa.DataType]
    """Types of columns that are delivered as text because their values were of several types."""
    desk: Desk
    spelt: Mapping[str, str]
    """Fields as they are spelt in the objects, by column."""

    def sql(self, condition: str = "true") -> str:
        """SQL of the rows for which a condition is true."""
        files = ", ".join(literal(file) for file in self.files)
        chosen = ", ".join(self.columns)
        read = f"read_parquet([{files}], union_by_name = true)"
        return f"select {chosen} from {read} where {condition}"

    def rows(self) -> int:
        return sum(pq.read_metadata(file).num_rows for file in self.files)

    def batches(self, condition: str = "true") -> Iterator[pa.RecordBatch]:
        with self.desk.session() as connection:
            reader = connection.execute(self.sql(condition)).to_arrow_reader(BATCH_ROWS)
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield from reader


def unpack(
    source: DltSource,
    table: str,
    folder: Path,
    types: Mapping[str, str],
    is_keyed: bool,
    desk: Desk,
) -> tuple[list[Unpacked], list[Rejected]]:
    """The table and its children, parents first; empty if the source gave no object. And what
    was none.

    types are declared ones: a column declared as text is not to be taken for a number. Objects
    without key are told apart by how often the same one came before.
    """
    resource = source.resources[table]
    rejected: list[Rejected] = []
    spelt: dict[str, str] = {}
    resource.add_filter(lambda item: _is_object(item, rejected))
    resource.add_map(_identify(is_keyed, spelt))
    resource.apply_hints(
        columns={name: {"data_type": "text"} for name, kind in types.items() if kind == "text"}
    )
    source.root_key = True
    source.schema.remove_type_detection("iso_timestamp")
    tables, files = _normalized(source, table, folder)
    family = [name for name in files if _root(tables, name) == table]
    return [
        _unpacked(tables[name], files[name], desk, spelt if name == table else {})
        for name in sorted(family, key=len)
    ], rejected


def _is_object(item: Any, rejected: list[Rejected]) -> bool:
    """Whether dlt may have it; what it may not is kept aside."""
    if isinstance(item, Rejected):
        rejected.append(item)
    return not isinstance(item, Rejected)


def _normalized(
    source: DltSource, name: str, folder: Path
) -> tuple[Mapping[str, TTableSchema], Mapping[str, list[str]]]:
    """dlt's tables and the Parquet files of each. The destination is never written to."""
    pipeline = dlt.pipeline(
        name,
        pipelines_dir=str(folder),
        destination=dlt.destinations.filesystem(folder.as_uri()),
        dataset_name=name,
    )
    pipeline.extract(source, loader_file_format="parquet", workers=1)
    pipeline.normalize(workers=1)
    files: dict[str, list[str]] = {}
    for load in pipeline.list_normalized_load_packages():
        for job in pipeline.get_load_package_info(load).jobs["new_jobs"]:
            files.setdefault(job.job_file_info.table_name, []).append(job.file_path)
    pipeline.deactivate()
    return pipeline.default_schema.tables, files


def _identify(is_keyed: bool, spelt: dict[str, str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Gives each object its `_dlt_id`, and notes how its fields are spelt."""
    met: set[str] = set()
    seen: Counter[str] = Counter()
    about = (PLACE, SOURCE_FILE) if is_keyed else (PLACE,)

    def identified(item: dict[str, Any]) -> dict[str, Any]:
        for key in item.keys() - met:
            met.add(key)
            spelt[_NAMING.normalize_identifier(key)] = key
        told = {key: value for key, value in item.items() if key not in about}
        text = json.dumps(told, sort_keys=True, default=str)
        mark = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        if not is_keyed:
            seen[mark] += 1
            mark = f"{mark}-{seen[mark]}"
        return {**item, ID: mark}

    return identified


def _root(tables: Mapping[str, TTableSchema], name: str) -> str:
    parent = tables[name].get("parent")
    return _root(tables, parent) if parent else name


def _unpacked(
    table: TTableSchema, files: Sequence[str], desk: Desk, spelt: Mapping[str, str]
) -> Unpacked:
    """A column whose values came in several types is in several columns: `x`, `x__v_text` …"""
    variants: dict[str, list[tuple[str, str]]] = {}
    plain: dict[str, str] = {}
    for name, column in table["columns"].items():
        kind = column.get("data_type")
        if kind is None or name == _LOAD:
            continue
        if column.get("variant"):
            variants.setdefault(name.rpartition("__v_")[0], []).append((name, kind))
        else:
            plain[name] = kind
    columns = {name: quoted(name) for name in plain}
    types: dict[str, pa.DataType] = {}
    for name, others in variants.items():
        kinds = [plain[name], *(kind for _, kind in others)]
        names = [quoted(each) for each in (name, *(other for other, _ in others))]
        if all(kind in _NUMBERS for kind in kinds):
            columns[name] = f"coalesce({', '.join(f'cast({each} as double)' for each in names)})"
        else:
            columns[name] = f"coalesce({', '.join(f'cast({each} as varchar)' for each in names)})"
            types[name] = named(plain[name] if plain[name] != "bool" else "boolean")
        columns[name] += f" as {quoted(name)}"
    return Unpacked(str(table["name"]), tuple(files), tuple(columns.values()), types, desk, spelt)
