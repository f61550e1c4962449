"""How many rows a Delta table has, from its log where the log knows."""

from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler


def row_count(table: DeltaTable) -> int:
    """Rows of the version the table is at.

    The log counts the rows of a file, deleted ones included, or not at all when its writer kept
    no statistics; then the file's footer is asked.
    """
    files = pa.table(table.get_add_actions())
    counts = files["num_records"] if "num_records" in files.column_names else None
    known = counts.to_pylist() if counts is not None else [None] * files.num_rows
    total = sum(count for count in known if count is not None)
    unknown = [unquote(files["path"][i].as_py()) for i, count in enumerate(known) if count is None]
    if unknown:
        handler = DeltaStorageHandler.from_table(table._table)
        filesystem = pa_fs.PyFileSystem(handler)
        total += sum(pq.read_metadata(file, filesystem=filesystem).num_rows for file in unknown)
    return int(total) - _deleted(table)


def _deleted(table: DeltaTable) -> int:
    """Rows that deletion vectors take away."""
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return 0
    kept = pa.table(table.deletion_vectors())["selection_vector"]
    return sum(pc.sum(pc.invert(row.values)).as_py() or 0 for row in kept if row.is_valid)
