"""What a query would give of a table: its types, and its rows as they were at a snapshot."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import adbc_driver_manager
import adbc_driver_postgresql  # type: ignore[import-untyped]
import pyarrow as pa


@dataclass(frozen=True)
class Query:
    """The same SQL that loads a table where it is not followed, so that it lands the same."""

    address: str
    sql: str
    types: Mapping[str, pa.DataType]
    """Of columns that the driver gives in another one."""

    @cached_property
    def kinds(self) -> Mapping[str, pa.DataType]:
        """Type of each column as it is read."""
        batches = list(self._read(f"select * from ({self.sql}) as nothing limit 0"))
        return {field.name: field.type for field in batches[0].schema}

    def rows(self, snapshot: str) -> Iterator[pa.RecordBatch]:
        """All rows as they were at an exported snapshot; first an empty batch."""
        begin = "begin isolation level repeatable read read only"
        yield from self._read(self.sql, begin, f"set transaction snapshot '{snapshot}'")

    def _read(self, sql: str, *before: str) -> Iterator[pa.RecordBatch]:
        with (
            adbc_driver_postgresql.connect(self.address) as database,
            adbc_driver_manager.AdbcConnection(database) as connection,
        ):
            for each in before:
                with adbc_driver_manager.AdbcStatement(connection) as statement:
                    statement.set_sql_query(each)
                    statement.execute_update()
            with adbc_driver_manager.AdbcStatement(connection) as statement:
                statement.set_sql_query(sql)
                handle, _ = statement.execute_query()
                with pa.RecordBatchReader._import_from_c(handle.address) as reader:
                    yield pa.RecordBatch.from_pylist([], schema=reader.schema)
                    yield from reader
