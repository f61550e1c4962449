"""Rows that broke their contract, kept with the reason in `quarantine_<system>.<table>`.

They must be safe before the other rows of their load are, as those move the cursor on. But they
are only known when the stream of the others ends, where Delta cannot be written: that would wait
for the very threads that wait for the stream. So they are first put into a file of the lake, which
is taken into the quarantine table after the commit of the others, or by the next load.

A row has the same `_id` however often it is delivered, so it is kept once.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import obstore
import pyarrow as pa
from obstore.exceptions import NotFoundError

from tarn.errors import TarnError
from tarn.ingestion.landed import LOAD_ID, LOADED_AT, Desk
from tarn.storage.duck import literal, select_from
from tarn.storage.lake import OWN_SCHEMA
from tarn.storage.writer import write

MOST_ROWS = 1_000_000
"""In one load of a table; beyond it the source has changed, and its rows are no longer dirt."""
_DRAFT = ".draft"


class Quarantine:
    """The rejected rows of one table in one load."""

    def __init__(self, desk: Desk, table: str, load_id: str, at: datetime) -> None:
        self.desk, self.raw = desk, table
        self.load_id, self.at = load_id, at
        self.file = f"{_waiting(table)}/{table.partition('.')[2]}.{load_id}.parquet"
        self.rows: list[pa.Table] = []
        self.count = 0

    def add(self, rows: pa.RecordBatch, reasons: Sequence[str]) -> None:
        if not rows.num_rows:
            return
        self.count += rows.num_rows
        if self.count > MOST_ROWS:
            raise TarnError(
                f"more than {MOST_ROWS:,} rows break the contract, the last: {reasons[-1]}",
                self.raw,
                "nothing was written; mend the rules or the source",
            )
        texts = {"_reason": pa.array(reasons, pa.string()), "_row": self._as_json(rows)}
        self.rows.append(pa.table(texts))

    def hold(self) -> None:
        """Make the rows safe. Writes no Delta."""
        if not self.rows:
            return
        lake = self.desk.lake
        target = self.desk.held(self.file)
        is_on_disk = lake.is_local or lake.is_rehearsal
        # On disk a file of its final name is whole; an object store does that by itself.
        draft = f"{target}{_DRAFT}" if is_on_disk else target
        if is_on_disk:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        with self.desk.session() as connection:
            connection.register("rejected", pa.concat_tables(self.rows))
            marks = {"load_id": self.load_id, "at": self.at}
            connection.execute(f"copy ({_IDENTIFIED}) to {literal(draft)} (format parquet)", marks)
        if is_on_disk:
            Path(draft).rename(target)

    def commit(self, transaction: tuple[str, int]) -> int:
        """Take the rows that are held into the table; how many of them were not there yet."""
        return _take_in(self.desk, self.raw, self.file, transaction) if self.rows else 0

    def values(self, column: str) -> list[str]:
        """What the rejected rows hold in a column, as text."""
        texts = (text.as_py() for rows in self.rows for text in rows["_row"])
        return [str(json.loads(text)[column]) for text in texts]

    def _as_json(self, rows: pa.RecordBatch) -> pa.Array:
        with self.desk.session() as connection:
            connection.register("rejected", rows)
            texts = connection.execute("select to_json(rejected) as text from rejected")
            return texts.to_arrow_table()["text"].combine_chunks().cast(pa.string())


def take_in_left(desk: Desk, system: str, transaction: tuple[str, int]) -> None:
    """What loads that were killed have held. A draft's load has written nothing else either."""
    folder = _waiting(f"raw_{system}.")
    for file in [entry["path"] for entry in desk.lake.files(folder)]:
        table = file.rpartition("/")[2].partition(".")[0]
        if file.endswith(_DRAFT):
            obstore.delete(desk.lake.objects, file)
        else:
            _take_in(desk, f"raw_{system}.{table}", file, transaction)


def _take_in(desk: Desk, raw: str, file: str, transaction: tuple[str, int]) -> int:
    """Rows of a file that the quarantine lacks go there; how many they were."""
    name = raw.replace("raw_", "quarantine_", 1)
    held = f"from read_parquet({literal(desk.held(file))})"

    def fresh() -> pa.Table:
        known = desk.lake.table(name)
        seen = f"anti join ({select_from(known)}) as seen using (_id)" if known else ""
        with desk.session() as connection:
            return connection.execute(f"select held.* {held} as held {seen}").to_arrow_table()

    rows = 0
    if fresh().num_rows:
        rows = write(
            desk.lake,
            name,
            lambda: fresh().to_reader(),
            mode="append",
            properties={"tarn.system": raw.partition(".")[0].removeprefix("raw_")},
            transaction=transaction,
        ).rows
    if not desk.lake.is_rehearsal:
        with suppress(NotFoundError):
            obstore.delete(desk.lake.objects, file)
    return rows


def _waiting(table: str) -> str:
    """Folder of the lake where the rows of a system wait."""
    return f"{OWN_SCHEMA}/quarantine/{table.partition('.')[0].removeprefix('raw_')}"


_IDENTIFIED = f"""
    with counted as (
        select *, row_number() over (partition by _row, _reason) as nth from rejected
    )
    select _reason, $load_id as {LOAD_ID}, cast($at as timestamp) as {LOADED_AT}, _row,
        md5(_reason || chr(0) || _row || chr(0) || nth) as _id
    from counted
"""
