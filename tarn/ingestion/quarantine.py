"""Rows that broke their contract, kept with the reason in `quarantine_<system>.<table>`.

They must be safe before the other rows of their load are, as those move the cursor on. But they
are only known when the stream of the others ends, where Delta cannot be written: that would wait
for the very threads that wait for the stream. So they are first put into a file of the lake, which
is taken into the quarantine table after the commit of the others, or by the next load.

A row has the same `_id` however often it is delivered, so it is kept once: `_first_seen` and
`_load_id` tell of the first time, `_last_seen`, `_reason` and `_place` of the last. Like a load
that finds nothing, a row that merely comes again is noted once an hour.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from obstore.exceptions import NotFoundError

from tarn.errors import TarnError
from tarn.ingestion.landed import LOAD_ID, LOADED_AT, PLACE, SOURCE_FILE, Desk
from tarn.ingestion.ledger import CHECK_AGAIN
from tarn.ingestion.sources import Rejected
from tarn.storage.clock import now
from tarn.storage.duck import literal, quoted, select_from
from tarn.storage.lake import OWN_SCHEMA
from tarn.storage.writer import write

MOST_ROWS = 1_000_000
"""In one load of a table; beyond it the source has changed, and its rows are no longer dirt."""
UNREAD = "-unread"
"""End of the `_id` of what could not be parsed."""
KIND = r"regexp_replace(_reason, '(\w+): .*? is not ', '\1 is not ', 'g')"
"""SQL of the reason without the value that it names."""
_DRAFT = ".draft"
_POSITION = re.compile(r":\d+$")
_NOTHING = f"""
    select null::varchar as _reason, null::varchar as _system, null::varchar as _place,
        null::varchar as _row, null::varchar as _id, null::varchar as {LOAD_ID},
        null::timestamp as {LOADED_AT}, null::timestamp as _first_seen,
        null::timestamp as _last_seen
    where false
"""
"""The columns; united with it by name, what an earlier Tarn wrote has them all."""


class Quarantine:
    """The rejected rows of one table in one load."""

    def __init__(self, desk: Desk, table: str, load_id: str, at: datetime) -> None:
        self.desk, self.raw = desk, table
        self.load_id, self.at = load_id, at
        self.file = f"{_waiting(table)}/{table.partition('.')[2]}.{load_id}.parquet"
        self.rows: list[pa.Table] = []
        self.count = 0

    def add(self, rows: pa.RecordBatch, reasons: Sequence[str]) -> None:
        """Rows as they were delivered, with or without a `_place`."""
        names = rows.schema.names
        place = next((name for name in (PLACE, SOURCE_FILE) if name in names), None)
        places = rows.column(place).cast(_TEXT) if place else pa.nulls(rows.num_rows, _TEXT)
        told = rows.select([name for name in names if name != PLACE])
        texts = {
            "_reason": pa.array(reasons, _TEXT),
            "_place": places,
            "_row": as_json(self.desk, told),
            "_origin": pa.repeat(pa.scalar("", _TEXT), rows.num_rows),
        }
        self._keep(pa.table(texts))

    def reject(self, item: Rejected) -> None:
        """Of two that look the same in two files none is the other."""
        self._keep(
            pa.table(
                {
                    "_reason": [item.reason],
                    "_place": [item.place],
                    "_row": [json.dumps(dict(item.row), default=str, ensure_ascii=False)],
                    "_origin": [_POSITION.sub("", item.place)],
                }
            )
        )

    def _keep(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        self.count += rows.num_rows
        if self.count > MOST_ROWS:
            raise TarnError(
                f"more than {MOST_ROWS:,} rows break the contract, the last: {rows['_reason'][-1]}",
                self.raw,
                "nothing was written; mend the rules or the source",
            )
        self.rows.append(rows)

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
            marks = {"load_id": self.load_id, "at": self.at, "system": _system(self.raw)}
            connection.execute(f"copy ({_IDENTIFIED}) to {literal(draft)} (format parquet)", marks)
        if is_on_disk:
            Path(draft).rename(target)

    def commit(self, transaction: tuple[str, int], has_moved: bool) -> int:
        """Take the rows that are held into the table; how many of them were not there yet.

        has_moved: there is something new in the load, so that what came again is noted.
        """
        if not self.rows:
            return 0
        return _take_in(self.desk, self.raw, self.file, transaction, has_moved)

    def values(self, column: str) -> list[str]:
        """What the rejected rows hold in a column, as text."""
        texts = (text.as_py() for rows in self.rows for text in rows["_row"])
        return [str(row[column]) for row in map(json.loads, texts) if column in row]


def as_json(desk: Desk, rows: pa.RecordBatch) -> pa.Array:
    """Rows as JSON text, each by the names of its columns."""
    if not rows.num_rows:
        return pa.array([], _TEXT)
    packed = ", ".join(f"{quoted(field.name)} := {_exact(field)}" for field in rows.schema)
    with desk.session() as connection:
        connection.register("rejected", rows)
        sql = f"select to_json(struct_pack({packed})) as text from rejected"
        texts = connection.execute(sql).to_arrow_table()["text"]
        return texts.combine_chunks().cast(_TEXT)


def _exact(field: pa.Field) -> str:
    """SQL of a column that JSON does not bend: its numbers are binary fractions to most readers,
    and know no infinity. Text that is JSON stays the text it was."""
    name = quoted(field.name)
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    if pa.types.is_decimal(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return f"cast({name} as varchar)"
    if pa.types.is_floating(field.type):
        return f"if(isfinite({name}), to_json({name}), to_json(cast({name} as varchar)))"
    return name


def take_in_left(desk: Desk, system: str, transaction: tuple[str, int]) -> None:
    """What loads that were killed have held. A draft's load has written nothing else either."""
    folder = _waiting(f"raw_{system}.")
    for file in [entry["path"] for entry in desk.lake.files(folder)]:
        table = file.rpartition("/")[2].partition(".")[0]
        if file.endswith(_DRAFT):
            obstore.delete(desk.lake.objects, file)
        else:
            _take_in(desk, f"raw_{system}.{table}", file, transaction, has_moved=True)


def matching(reason: str) -> str:
    """SQL: whether a row is kept for a reason that has this text in it, with or without values."""
    text = literal(reason)
    return f"(contains(_reason, {text}) or contains({KIND}, {text}))"


def remove(desk: Desk, raw: str, ids: Sequence[str]) -> None:
    """Take rows out."""
    if ids:
        gone = pa.table({"_id": pa.array(ids, _TEXT), "_gone": [True] * len(ids)})
        properties = {"tarn.system": _system(raw)}
        write(
            desk.lake,
            name_of(raw),
            gone,
            mode="merge",
            keys=["_id"],
            deleted="_gone",
            properties=properties,
        )


def name_of(raw: str) -> str:
    """Name of a raw table's quarantine."""
    return raw.replace("raw_", "quarantine_", 1)


def rows_of(known: DeltaTable) -> str:
    """SQL of a quarantine's rows, with all columns whoever wrote them."""
    return f"({_NOTHING} union all by name {select_from(known)})"


def _take_in(desk: Desk, raw: str, file: str, transaction: tuple[str, int], has_moved: bool) -> int:
    """Rows of a file that the quarantine lacks go there; how many they were."""
    name = name_of(raw)
    held = f"({_NOTHING} union all by name from read_parquet({literal(desk.held(file))}))"
    parameters = {"has_moved": has_moved, "since": now() - CHECK_AGAIN}

    def worth_noting() -> pa.Table:
        known = desk.lake.table(name)
        sql = _MET.format(held=held, seen=rows_of(known) if known else f"({_NOTHING})")
        with desk.session() as connection:
            return connection.execute(sql, parameters).to_arrow_table()

    rows = worth_noting()
    fresh = pc.sum(rows["is_new"]).as_py() or 0
    if rows.num_rows:
        write(
            desk.lake,
            name,
            lambda: worth_noting().drop_columns(["is_new"]).to_reader(),
            mode="merge",
            keys=["_id"],
            evolve=True,
            properties={"tarn.system": _system(raw)},
            transaction=transaction,
        )
    if not desk.lake.is_rehearsal:
        with suppress(NotFoundError):
            obstore.delete(desk.lake.objects, file)
    return int(fresh)


def _system(raw: str) -> str:
    return raw.partition(".")[0].removeprefix("raw_")


def _waiting(table: str) -> str:
    """Folder of the lake where the rows of a system wait."""
    return f"{OWN_SCHEMA}/quarantine/{_system(table)}"


_TEXT = pa.string()
_IDENTIFIED = f"""
    with counted as (
        select *, row_number() over (partition by _row, _origin) as nth from rejected
    )
    select _reason, $system as _system, _place, _row,
        md5(_row || chr(0) || _origin || chr(0) || nth)
            || if(_origin = '', '', '{UNREAD}') as _id, $load_id as {LOAD_ID},
        cast($at as timestamp) as {LOADED_AT}, cast($at as timestamp) as _first_seen,
        cast($at as timestamp) as _last_seen
    from counted
"""
_MET = f"""
    select held._reason, held._system, held._place, held._row, held._id,
        coalesce(seen.{LOAD_ID}, held.{LOAD_ID}) as {LOAD_ID},
        coalesce(seen.{LOADED_AT}, held.{LOADED_AT}) as {LOADED_AT},
        coalesce(seen._first_seen, seen.{LOADED_AT}, held._first_seen, held.{LOADED_AT})
            as _first_seen,
        coalesce(held._last_seen, held.{LOADED_AT}) as _last_seen, seen._id is null as is_new
    from {{held}} as held left join {{seen}} as seen using (_id)
    where seen._id is null or $has_moved or seen._reason is distinct from held._reason
        or coalesce(seen._last_seen, seen.{LOADED_AT}) < $since
"""
