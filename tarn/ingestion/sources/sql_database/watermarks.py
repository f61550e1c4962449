"""The highest cursor in the lake."""

from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tarn.ingestion.landed import Landed
from tarn.storage.clock import now
from tarn.storage.duck import quoted

_AHEAD = timedelta(days=1)
"""A clock of another zone may be so far ahead."""


def watermark(landed: Landed, column: str) -> Any:
    """The highest value of a cursor in the lake; None without table, column or value.

    An instant in the future is none: one row stamped 9999 would hide all changes after it.
    """
    if landed.schema is None or column not in landed.schema.names:
        return None
    kind = landed.schema.field(column).type
    highest = _in_log(landed, column, kind)
    if highest is None:
        highest = landed.maximum(column)
    if not isinstance(highest, date) or not _is_ahead(highest):
        return highest
    latest = now() + _AHEAD
    sql = f"select max({quoted(column)}) from ({landed.select}) where {quoted(column)} <= ?"
    with landed.desk.session() as connection:
        row = connection.execute(sql, [latest]).fetchone()
    return row and row[0]


def _in_log(landed: Landed, column: str, kind: pa.DataType) -> Any:
    """What the table's log tells without reading a file, however large the table is. Instants are
    cut to milliseconds there."""
    if landed.table is None or not (pa.types.is_timestamp(kind) or pa.types.is_integer(kind)):
        return None
    files = pa.table(landed.table.get_add_actions(flatten=True))
    name, nulls = f"max.{column}", f"null_count.{column}"
    if name not in files.column_names or nulls not in files.column_names:
        return None
    values = files[name]
    unknown = pc.and_(pc.is_null(values), pc.less(files[nulls], files["num_records"]))
    if files[nulls].null_count or pc.any(unknown).as_py():
        return None
    highest = pc.max(values).as_py()
    return highest.replace(tzinfo=None) if isinstance(highest, datetime) else highest


def _is_ahead(value: date) -> bool:
    latest = now() + _AHEAD
    return value > (latest if isinstance(value, datetime) else latest.date())
