"""Rows that broke their contract, kept with the reason in `quarantine_<system>.<table>`.

A row has the same `_id` however often it is delivered, so one that comes again, after a killed
load for example, is kept once.
"""

import json
from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa

from tarn.errors import TarnError
from tarn.ingestion.landed import LOAD_ID, LOADED_AT, Desk
from tarn.storage.duck import select_from
from tarn.storage.writer import write

MOST_ROWS = 1_000_000
"""In one load of a table; beyond it the source has changed, and its rows are no longer dirt."""
_TIMESTAMP = pa.timestamp("us")


class Quarantine:
    """The rejected rows of one table in one load."""

    def __init__(self, desk: Desk, table: str, load_id: str, at: datetime) -> None:
        self.desk, self.raw = desk, table
        self.name = table.replace("raw_", "quarantine_", 1)
        self.load_id, self.at = load_id, at
        self.rows: list[pa.Table] = []
        self.count = 0

    def add(self, rows: pa.RecordBatch, reasons: Sequence[str]) -> None:
        if not rows.num_rows:
            return
        self.count += rows.num_rows
        if self.count > MOST_ROWS:
            raise TarnError(
                f"more than {MOST_ROWS:,} rows break the contract, first: {self._first_reason()}",
                self.raw,
                "nothing was written; mend the rules or the source",
            )
        texts = {"_reason": pa.array(reasons, pa.string()), "_row": self._as_json(rows)}
        self.rows.append(pa.table(texts))

    def commit(self, transaction: tuple[str, int]) -> int:
        """Put the rows into quarantine; how many of them were not there yet."""
        if not self.rows or not self._fresh().num_rows:
            return 0
        written = write(
            self.desk.lake,
            self.name,
            lambda: self._fresh().to_reader(),
            mode="append",
            properties={"tarn.load_id": self.load_id},
            transaction=transaction,
        )
        return written.rows

    def values(self, column: str) -> list[str]:
        """What the rejected rows hold in a column, as text."""
        texts = (text.as_py() for rows in self.rows for text in rows["_row"])
        return [str(json.loads(text)[column]) for text in texts]

    def _fresh(self) -> pa.Table:
        known = self.desk.lake.table(self.name)
        with self.desk.session() as connection:
            connection.register("rejected", pa.concat_tables(self.rows))
            seen = f"select _id from ({select_from(known)})" if known else "select '' as _id"
            return connection.execute(_IDENTIFIED.format(seen=seen), _marks(self)).to_arrow_table()

    def _as_json(self, rows: pa.RecordBatch) -> pa.Array:
        with self.desk.session() as connection:
            connection.register("rejected", rows)
            texts = connection.execute("select to_json(rejected) as text from rejected")
            return texts.to_arrow_table()["text"].combine_chunks().cast(pa.string())

    def _first_reason(self) -> str:
        return str(self.rows[0]["_reason"][0]) if self.rows else "every row"


_IDENTIFIED = f"""
    with counted as (
        select *, row_number() over (partition by _row, _reason) as nth from rejected
    ), identified as (
        select _reason, $load_id as {LOAD_ID}, cast($at as timestamp) as {LOADED_AT}, _row,
            md5(_reason || chr(0) || _row || chr(0) || nth) as _id
        from counted
    )
    select identified.* from identified anti join ({{seen}}) as seen using (_id)
"""


def _marks(quarantine: Quarantine) -> dict[str, object]:
    return {"load_id": quarantine.load_id, "at": quarantine.at}
