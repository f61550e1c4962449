"""Predicates in the SQL that delta-rs understands."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
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
        # delta-rs refuses a cast here, and an offset; it takes text for the column's type.
        utc = item.astimezone(UTC).replace(tzinfo=None) if item.tzinfo else item
        return f"'{utc.isoformat(sep=' ')}'"
    if isinstance(item, date):
        return f"'{item.isoformat()}'"
    if isinstance(item, str):
        escaped = item.replace("'", "''")
        return f"'{escaped}'"
    raise TypeError(f"no constant for a {type(item).__name__}")


def any_of(columns: Sequence[str], rows: Iterable[Sequence[object]], prefix: str = "") -> str:
    """True where the columns, each with `prefix` before it, equal one of the rows; null equals
    null. Raises TypeError as `value` does."""
    rows = list(rows)
    names = [prefix + column(name) for name in columns]
    if len(names) == 1 and all(row[0] is not None for row in rows):
        return f"{names[0]} in ({', '.join(value(row[0]) for row in rows)})"
    return " or ".join(f"({_equal(names, row)})" for row in rows)


def _equal(names: Sequence[str], row: Sequence[object]) -> str:
    pairs = zip(names, row, strict=True)
    return " and ".join(
        f"{name} is null" if item is None else f"{name} = {value(item)}" for name, item in pairs
    )
