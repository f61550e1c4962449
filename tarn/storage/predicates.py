"""Predicates in the SQL that delta-rs understands."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal


def column(name: str) -> str:
    """A column's name."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def value(item: object) -> str:
    """A constant. Raises TypeError for a type that has no exact spelling here."""
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, int | Decimal):
        return str(item)
    if isinstance(item, datetime):
        return f"cast('{item.isoformat(sep=' ')}' as timestamp)"
    if isinstance(item, date):
        return f"cast('{item.isoformat()}' as date)"
    if isinstance(item, str):
        escaped = item.replace("'", "''")
        return f"'{escaped}'"
    raise TypeError(f"no constant for a {type(item).__name__}")


def any_of(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """True where the columns equal one of the rows; null equals null."""
    rows = list(rows)
    if len(columns) == 1 and all(row[0] is not None for row in rows):
        return f"{column(columns[0])} in ({', '.join(value(row[0]) for row in rows)})"
    return " or ".join(f"({_equal(columns, row)})" for row in rows)


def _equal(columns: Sequence[str], row: Sequence[object]) -> str:
    pairs = zip(columns, row, strict=True)
    return " and ".join(
        f"{column(name)} is null" if item is None else f"{column(name)} = {value(item)}"
        for name, item in pairs
    )
