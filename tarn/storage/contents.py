"""What two versions of a table hold, compared by the content of their rows, not by their files.

Each row has a 64-bit hash, and a table the sum of its rows' hashes, so that neither the order of
rows nor the files they are in matter, and repeated rows count.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from tarn.storage.duck import quoted, select_from, session
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin, pinned


@dataclass(frozen=True)
class Changes:
    """How one version of a table differs from another."""

    columns_added: tuple[str, ...] = ()
    columns_removed: tuple[str, ...] = ()
    columns_retyped: tuple[str, ...] = ()
    columns_changed: tuple[str, ...] = ()
    """With other values; told only when as many rows came as went."""
    rows_added: int = 0
    """Rows, as to the columns that both versions have in the same type, that only the later has."""
    rows_removed: int = 0

    def __bool__(self) -> bool:
        return self != Changes()


def content_hash(lake: Lake, name: str, pin: Pin) -> str:
    """A hash of all rows of a table, equal for equal rows whatever their order and files."""
    table = pinned(lake, name, pin)
    with session(lake) as connection:
        sums = _sums(connection, table, _columns(table))
    return f"{sums.rows:x}-{sums.total:x}"


def changes(lake: Lake, name: str, before: Pin, after: Pin) -> Changes:
    """What changed in a table between two of its versions."""
    tables = [pinned(lake, name, pin) for pin in (before, after)]
    old, new = (_columns(table) for table in tables)
    same = {column: kind for column, kind in old.items() if new.get(column) == kind}
    with session(lake) as connection:
        sums = [_sums(connection, table, same) for table in tables]
        removed, added = (0, 0)
        if sums[0] != sums[1]:
            removed, added = _moved(connection, tables, same)
    differ = [column for column in same if sums[0].columns[column] != sums[1].columns[column]]
    return Changes(
        columns_added=tuple(column for column in new if column not in old),
        columns_removed=tuple(column for column in old if column not in new),
        columns_retyped=tuple(c for c in new if c in old and c not in same),
        columns_changed=tuple(differ) if removed == added else (),
        rows_added=added,
        rows_removed=removed,
    )


@dataclass(frozen=True)
class _Sums:
    rows: int
    total: int
    columns: Mapping[str, int]


def _columns(table: DeltaTable) -> dict[str, str]:
    return {field.name: str(field.type) for field in pa.schema(table.schema().to_arrow())}


def _sums(
    connection: duckdb.DuckDBPyConnection, table: DeltaTable, columns: Mapping[str, str]
) -> _Sums:
    each = "".join(f", sum(hash({quoted(c)})::hugeint)" for c in columns)
    row = connection.execute(
        f"select count(*), sum({_row(columns)}::hugeint){each} from ({select_from(table)})"
    ).fetchone()
    assert row is not None
    rows, total, *sums = (value or 0 for value in row)
    return _Sums(rows, total, dict(zip(columns, sums, strict=True)))


def _moved(
    connection: duckdb.DuckDBPyConnection, tables: list[DeltaTable], columns: Mapping[str, str]
) -> tuple[int, int]:
    """How many rows only the first table has, and how many only the second."""
    first, second = (
        f"select {_row(columns)} as h, {side} as side from ({select_from(table)})"
        for side, table in zip((1, -1), tables, strict=True)
    )
    row = connection.execute(
        "select coalesce(sum(n) filter (n > 0), 0), coalesce(-sum(n) filter (n < 0), 0) from"
        f" (select sum(side) as n from ({first} union all {second}) group by h)"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _row(columns: Mapping[str, str]) -> str:
    return f"hash({', '.join(quoted(name) for name in sorted(columns))})" if columns else "0"
