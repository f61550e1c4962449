"""Tables that the files of a folder could be: those alike in name, format and columns together."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa

from tarn.errors import TarnError
from tarn.ingestion.declarations.files import FilesTable
from tarn.ingestion.landed import PLACE, SOURCE_FILE
from tarn.ingestion.names import column_names
from tarn.ingestion.sources import Offered, Rejected
from tarn.ingestion.sources.files.contents import named_format
from tarn.ingestion.sources.files.objects import JsonFile
from tarn.ingestion.sources.files.places import Found, Place, Web
from tarn.ingestion.sources.files.reading import Copy, Reading
from tarn.ingestion.sources.files.unfinished import is_draft, is_hidden
from tarn.ingestion.types import landing, shown
from tarn.storage.duck import quoted

_NUMBERS = re.compile(r"\d+([-_. T]?\d+)*")
_SAMPLED = 10_000
_TYPES = ("bigint", "double", "date", "timestamp", "boolean")


def offered(place: Place) -> list[Offered]:
    """A table for each kind of file; those that cannot be read are left out."""
    pattern = "*" if isinstance(place, Web) else "**/*"
    groups: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for found in place.list(pattern):
        format = named_format(found.path)
        if format and not is_hidden(found.path, ()) and not is_draft(found.path):
            groups[_glob(found.path), format].append(found)
    tables: list[Offered] = []
    for (glob, format), files in sorted(groups.items()):
        path = glob if len(groups) == 1 or _is_own(glob, files, place) else files[0].path
        with TemporaryDirectory() as scratch:
            newest = max(files, key=lambda each: (each.modified_at, each.path))
            table = _offer(path, format, newest, place, Path(scratch))
        if table:
            tables.append(_renamed(table, [each.name for each in tables]))
    return tables


def _offer(path: str, format: str, found: Found, place: Place, scratch: Path) -> Offered | None:
    spec = FilesTable(path=path, write="append")
    reading = Reading("sample", format, spec, path, None)
    reading.take(Copy(place, found, scratch))
    if not reading.files:
        return None
    try:
        sample = _sample(reading)
    except TarnError:
        return None
    types, is_text = _types(sample), format == "csv"
    key = _key(sample)
    told: dict[str, Any] = {"path": path, "write": "merge" if key else "append"}
    if key:
        told["primary_key"] = [key]
    if is_text and (typed := {name: kind for name, kind in types.items() if kind != "text"}):
        told["columns"] = typed
    (opened,) = reading.files
    return Offered(_name(path), told, types, f"Rows of {path}: {opened.parts[0].described}.")


def _sample(reading: Reading) -> pa.Table:
    """The first rows of a file."""
    (opened,) = reading.files
    first = opened.parts[0]
    if isinstance(first, JsonFile):
        return _of_objects(first)
    batches: list[pa.RecordBatch] = []
    for item in first.batches():
        if not isinstance(item, Rejected):
            names = [name for name in item.schema.names if name != PLACE]
            batches.append(item.select(names).rename_columns(column_names(names, reading.where)))
        if sum(batch.num_rows for batch in batches) >= _SAMPLED:
            break
    return pa.Table.from_batches(batches).slice(0, _SAMPLED) if batches else pa.table({})


def _of_objects(file: JsonFile) -> pa.Table:
    """Scalars of objects; a column of several types is text."""
    columns: dict[str, list[Any]] = {}
    for count, item in enumerate(file.items()):
        if count >= _SAMPLED:
            break
        if isinstance(item, Rejected):
            continue
        for name, value in item.items():
            if name not in (PLACE, SOURCE_FILE) and not isinstance(value, dict | list):
                columns.setdefault(name, []).append(value)
    names = column_names(list(columns), file.name)
    return (
        pa.table({"_": []}).slice(0, 0).drop_columns(["_"])
        if not names
        else _padded(dict(zip(names, columns.values(), strict=True)))
    )


def _padded(columns: Mapping[str, list[Any]]) -> pa.Table:
    longest = max(map(len, columns.values()))
    arrays = []
    for values in columns.values():
        filled = [*values, *[None] * (longest - len(values))]
        try:
            arrays.append(pa.array(filled))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            arrays.append(pa.array([None if each is None else str(each) for each in filled]))
    return pa.table(arrays, names=list(columns))


def _types(sample: pa.Table) -> dict[str, str]:
    """Types in YAML's words; those of text by its values."""
    found = {}
    for field in sample.schema:
        if pa.types.is_string(field.type):
            found[field.name] = _type_of_text(sample, field.name)
        elif pa.types.is_null(field.type):
            found[field.name] = "text"
        else:
            found[field.name] = shown(landing(field, field.name))
    return found


def _type_of_text(sample: pa.Table, name: str) -> str:
    """The narrowest type that all values have. Numbers that begin with 0 are names."""
    tests = ", ".join(
        f"coalesce(bool_and(try_cast(value as {kind}) is not null), false)" for kind in _TYPES
    )
    sql = f"""
        select coalesce(bool_or(regexp_matches(value, '^[-+]?0\\d')), false), {tests}
        from (select {quoted(name)} as value from sample) where value is not null
    """
    with duckdb.connect() as connection:
        connection.register("sample", sample)
        told = connection.execute(sql).fetchone()
    assert told is not None
    has_zeros, *fits = told
    kinds = [kind for kind, is_so in zip(_TYPES, fits, strict=True) if is_so]
    if has_zeros:
        kinds = [kind for kind in kinds if kind not in ("bigint", "double")]
    if "bigint" in kinds:
        return "bigint"
    return kinds[0] if kinds else "text"


def _key(sample: pa.Table) -> str | None:
    """A column that tells the rows apart, if one is called like that."""
    if sample.num_rows < 2:
        return None
    for name in sample.schema.names:
        is_called = re.search(r"(^|_)(id|key|code|number|no|nr|uuid)$", name) is not None
        column = sample.column(name)
        if not is_called or pa.types.is_nested(column.type) or column.null_count:
            continue
        if len(column.unique()) == sample.num_rows:
            return str(name)
    return None


def _glob(path: str) -> str:
    return _NUMBERS.sub("*", path)


def _is_own(glob: str, files: Sequence[Found], place: Place) -> bool:
    """Whether a pattern names these files and no others."""
    return {each.path for each in place.list(glob)} == {each.path for each in files}


def _name(path: str) -> str:
    """A table's name: of the file, or of its folder where the files have but numbers."""
    for part in reversed(PurePosixPath(path).parts):
        stem = part.partition(".")[0] if part == PurePosixPath(path).name else part
        words = re.sub(r"[^a-z0-9]+", "_", stem.replace("*", " ").lower()).strip("_")
        if words and words not in ("part", "data") and "=" not in part:
            return words if words[0].isalpha() else f"t_{words}"
    return "files"


def _renamed(table: Offered, taken: Sequence[str]) -> Offered:
    name, nth = table.name, 2
    while name in taken:
        name, nth = f"{table.name}_{nth}", nth + 1
    return Offered(name, table.spec, table.columns, table.description)
