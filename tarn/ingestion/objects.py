"""Objects of unknown shape made into tables by dlt: lists in a row become child tables.

dlt works in a folder that is thrown away. A row's `_dlt_id` is a hash of all that was delivered
of it, children included: a row whose `_dlt_id` the lake has is the same row, and children belong
to one version of their row. Text stays text: dlt's guess at timestamps is off, and what it would
bend to fit a column of another type ('007' to 7, 5 to true, 2^53 + 1 to a double) goes through it
as text with a mark.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.parquet as pq
from dlt.common.schema.typing import TTableSchema
from dlt.extract import DltSource

from tarn.ingestion.landed import PLACE, SOURCE_FILE, Desk
from tarn.ingestion.names import TAKEN, snake_case
from tarn.ingestion.sources import BATCH_ROWS, Rejected
from tarn.ingestion.types import named, plain
from tarn.storage.duck import literal, quoted

ID = "_dlt_id"
ROOT_ID = "_dlt_root_id"
_LOAD = "_dlt_load_id"
_MARK = "\x01"
"""Begins a text that dlt would bend, or that stands for another value; a letter after it says
which: a boolean, a long integer, a double or a text."""
_EXACT = 2**53
"""Up to here each integer is a double, and each double that is whole an integer."""
_BENT = re.compile(rf"\s*[-+]?\.?(\d|inf|nan)|{_MARK}", re.IGNORECASE)
_LETTERS = {"bigint": "i", "double": "d", "bool": "b"}
_BY_LETTER = {
    frozenset("b"): "boolean",
    frozenset("i"): "bigint",
    frozenset("l"): "bigint",
    frozenset("il"): "bigint",
    frozenset("d"): "double",
    frozenset("id"): "double",
}
"""The type that holds all values of a column exactly."""


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
        return f"select {', '.join(self.columns)} from {_read(self.files)} where {condition}"

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
    # dlt makes doubles of numbers; as text they are what they were until they are decimals.
    kept = ("text", "decimal")
    texts = frozenset(name for name, kind in types.items() if kind.startswith(kept))
    resource.add_filter(lambda item: _is_object(item, rejected, texts))
    resource.add_map(_identify(is_keyed, spelt))
    resource.add_map(lambda item: {**_marked(item), ID: item[ID]})
    resource.apply_hints(columns={name: {"data_type": "text"} for name in texts})
    source.root_key = True
    source.schema.remove_type_detection("iso_timestamp")
    tables, files = _normalized(source, table, folder)
    family = [name for name in files if _root(tables, name) == table]
    return [
        _unpacked(tables[name], files[name], desk, *((spelt, texts) if name == table else ({}, ())))
        for name in sorted(family, key=len)
    ], rejected


def _is_object(item: Any, rejected: list[Rejected], texts: Collection[str]) -> bool:
    """Whether dlt may have it; what it may not is kept aside."""
    if not isinstance(item, Rejected):
        why = next(_faults(item, (), texts), None)
        if why is None:
            return True
        item = Rejected({k: v for k, v in item.items() if k != PLACE}, why, item.get(PLACE, ""))
    rejected.append(item)
    return False


def _faults(value: Any, at: tuple[str, ...], texts: Collection[str]) -> Iterator[str]:
    """Fields of an object of which dlt would lose one, or end in failure."""
    if isinstance(value, list):
        for each in value:
            yield from _faults(each, at, texts)
    elif _is_long(value) and snake_case("__".join(at)) not in texts:
        yield f"{'.'.join(at)}: {plain(value)} is not bigint"
    elif isinstance(value, dict):
        if why := _clash(tuple(value)):
            yield f"{'.'.join(at)}: {why}" if at else why
        taken = [key for key in value if not at and key in TAKEN and key != SOURCE_FILE]
        if taken:
            yield f"a field may not be called {taken[0]}"
        for key, each in value.items():
            if isinstance(each, dict | list | int):
                yield from _faults(each, (*at, key), texts)


@lru_cache
def _clash(keys: tuple[str, ...]) -> str:
    spelt = Counter(map(snake_case, keys))
    alike = [key for key in keys if spelt[snake_case(key)] > 1]
    return f"fields {', '.join(alike)} have the same name in snake case" if alike else ""


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
            spelt[snake_case(key)] = key
        told = {key: value for key, value in item.items() if key not in about}
        text = json.dumps(told, sort_keys=True, default=str)
        mark = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        if not is_keyed:
            seen[mark] += 1
            mark = f"{mark}-{seen[mark]}"
        return {**item, ID: mark}

    return identified


def _marked(value: Any) -> Any:
    """An object with marks on what dlt would bend."""
    if isinstance(value, dict):
        return {key: _marked(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_marked(each) for each in value]
    if isinstance(value, str):
        return f"{_MARK}t{value}" if _BENT.match(value) else value
    if isinstance(value, bool):
        return f"{_MARK}b{str(value).lower()}"
    if isinstance(value, int | float) and abs(value) > _EXACT:
        return f"{_MARK}{'d' if isinstance(value, float) else 'l'}{value!r}"
    return value


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _root(tables: Mapping[str, TTableSchema], name: str) -> str:
    parent = tables[name].get("parent")
    return _root(tables, parent) if parent else name


def _unpacked(
    table: TTableSchema,
    files: Sequence[str],
    desk: Desk,
    spelt: Mapping[str, str],
    texts: Collection[str],
) -> Unpacked:
    """A column whose values came in several types is in several columns: `x`, `x__v_text` …"""
    parts: dict[str, dict[str, str]] = {}
    for part, column in table["columns"].items():
        kind = column.get("data_type")
        if kind is not None and part != _LOAD:
            name = part.rpartition("__v_")[0] if column.get("variant") else part
            parts.setdefault(name, {})[part] = kind
    letters = _letters([part for each in parts.values() for part in each], table, files, desk)
    columns: list[str] = []
    types: dict[str, pa.DataType] = {}
    for name, kinds in parts.items():
        first = kinds[name]
        if first != "text" and len(kinds) == 1:
            columns.append(quoted(name))
            continue
        found = frozenset("").union(*(letters[part] for part in kinds))
        exact = _BY_LETTER.get(found) if name not in texts else None
        told = [
            f"cast({_unmarked(part) if kind == 'text' else quoted(part)} as {exact or 'varchar'})"
            for part, kind in kinds.items()
        ]
        columns.append(f"coalesce({', '.join(told)}) as {quoted(name)}")
        if exact is None and found <= set("ild") and found:
            types[name] = named("double")
        elif exact is None and first != "text":
            types[name] = named({"bool": "boolean"}.get(first, first))
    return Unpacked(str(table["name"]), tuple(files), tuple(columns), types, desk, spelt)


def _letters(
    parts: Sequence[str], table: TTableSchema, files: Sequence[str], desk: Desk
) -> Mapping[str, frozenset[str]]:
    """Of which types the values in dlt's columns are. A number without mark among texts is one
    that dlt made text, to fit a column that began as text."""
    kinds = {part: str(table["columns"][part]["data_type"]) for part in parts}
    found = {part: frozenset(_LETTERS.get(kind, "t")) for part, kind in kinds.items()}
    texts = [part for part in parts if kinds[part] == "text" and not part.startswith("_dlt_")]
    if texts:
        asked = (
            f"""list(distinct case
                when starts_with({name}, '{_MARK}') then {name}[2]
                when regexp_matches({name}, '^-?[0-9]+$') then 'i'
                when regexp_matches({name}, '^-?[0-9.]+(e[-+]?[0-9]+)?$') then 'd'
                when {name} is not null then 't'
            end)"""
            for name in map(quoted, texts)
        )
        with desk.session() as connection:
            row = connection.execute(f"select {', '.join(asked)} from {_read(files)}").fetchone()
        for part, letters in zip(texts, row or (), strict=True):
            found[part] = frozenset(filter(None, letters or ()))
    return found


def _unmarked(part: str) -> str:
    name = quoted(part)
    return f"if(starts_with({name}, '{_MARK}'), {name}[3:], {name})"


def _read(files: Sequence[str]) -> str:
    return f"read_parquet([{', '.join(map(literal, files))}], union_by_name = true)"
