"""What a table says of itself: its columns, its files, and who made each of its versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.storage import releases
from tarn.storage.datafiles import data_files
from tarn.storage.lake import Lake
from tarn.storage.rows import row_count
from tarn.strict_yaml import nearest

_OWN = "tarn."


@dataclass(frozen=True)
class Column:
    """One column, in the table's order."""

    name: str
    type: str
    description: str


@dataclass(frozen=True)
class Commit:
    """One version, and where it comes from."""

    version: int
    at: datetime
    """UTC."""
    operation: str
    rows_written: int | None
    """None where the writer did not say."""
    made_by: Mapping[str, str]
    """What wrote it: load_id and system, model and invocation, upkeep; git_revision."""
    reads: Sequence[str]
    """`schema.table@version` of what it was made from."""
    release: int | None
    """The first release kept that shows this version."""


@dataclass(frozen=True)
class Description:
    """A table at one version."""

    name: str
    version: int
    text: str
    columns: Sequence[Column]
    partition_by: Sequence[str]
    rows: int
    bytes: int
    files: int
    history: Sequence[Commit]
    """Newest first, up to the version."""


def describe(lake: Lake, name: str, version: int | None = None, commits: int = 20) -> Description:
    """The table `schema.table` at a version, else at its newest, with so many commits."""
    table = lake.table(name, version)
    if table is None:
        raise TarnError(f"no such table{nearest(name, lake.names())}", lake.uri(name))
    files, said = data_files(table), dict(comments(table))
    fields = pa.schema(table.schema().to_arrow())
    return Description(
        name=name,
        version=table.version(),
        text=table.metadata().description or "",
        columns=[Column(f.name, _type(f.type), said.get(f.name, "")) for f in fields],
        partition_by=table.metadata().partition_columns,
        rows=row_count(table),
        bytes=sum(file.size for file in files),
        files=len(files),
        history=_history(lake, name, table, commits),
    )


def comments(table: DeltaTable) -> list[tuple[str, str]]:
    """Each column that says something of itself, and what."""
    found = ((field.name, field.metadata or {}) for field in pa.schema(table.schema().to_arrow()))
    return [(name, said[b"comment"].decode()) for name, said in found if b"comment" in said]


def _type(kind: pa.DataType) -> str:
    return str(kind).replace("decimal128", "decimal")


def _history(lake: Lake, name: str, table: DeltaTable, commits: int) -> list[Commit]:
    shown: dict[int, int] = {}
    for one in releases.releases(lake):
        if pin := one.tables.get(name):
            shown[pin.version] = one.number
    return [_commit(entry, shown) for entry in table.history(commits)]


def _commit(entry: Mapping[str, Any], shown: Mapping[int, int]) -> Commit:
    ours = {k.removeprefix(_OWN): str(v) for k, v in entry.items() if k.startswith(_OWN)}
    reads = ours.pop("reads", "")
    metrics = entry.get("operationMetrics") or {}
    rows = metrics.get("num_added_rows", metrics.get("num_output_rows"))
    return Commit(
        version=entry["version"],
        at=datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
        operation=str(entry.get("operation", "")).lower(),
        rows_written=None if rows is None else int(rows),
        made_by={k: v for k, v in ours.items() if k != "write_id"},
        reads=reads.split(",") if reads else [],
        release=shown.get(entry["version"]),
    )
