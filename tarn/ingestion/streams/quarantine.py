"""Messages that are no rows, or break the contract, by their place: `orders-3 offset 991`.

They are committed before the rows beside them, whose commit moves the position on. A consumer that
is killed in between reads them again, and knows them by their place and bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import md5

import pyarrow as pa

from tarn.ingestion.intake import Load
from tarn.ingestion.landed import LOAD_ID, LOADED_AT, PLACE
from tarn.ingestion.quarantine import UNREAD, as_json, name_of
from tarn.storage.duck import select_from
from tarn.storage.writer import write

MESSAGE = "message"
"""Key under which a quarantined row holds the text of a message that could not be read."""


@dataclass(frozen=True)
class Bad:
    """What does not become rows; the three are as long as each other."""

    places: Sequence[str]
    texts: Sequence[str]
    """The rows as JSON."""
    reasons: Sequence[str]
    is_read: bool
    """Whether they were understood, so that they can be replayed."""
    messages: Sequence[bytes]
    """As they came: how a row is told depends on those it is decoded with."""

    @classmethod
    def of_rows(
        cls,
        load: Load,
        rows: pa.RecordBatch,
        reasons: Sequence[str],
        messages: Mapping[str, bytes],
    ) -> "Bad":
        """Rows as delivered, with a `_place`. messages: by place."""
        texts = as_json(load.desk, rows.drop_columns([PLACE])).to_pylist()
        places = rows.column(PLACE).to_pylist()
        return cls(places, texts, reasons, True, [messages[place] for place in places])

    @classmethod
    def of_messages(
        cls,
        places: Sequence[str],
        said: Sequence[str],
        reasons: Sequence[str],
        messages: Mapping[str, bytes],
    ) -> "Bad":
        texts = [json.dumps({MESSAGE: text}, ensure_ascii=False) for text in said]
        return cls(places, texts, reasons, False, [messages[place] for place in places])

    @property
    def ids(self) -> list[str]:
        end = "" if self.is_read else UNREAD
        pairs = zip(self.places, self.messages, strict=True)
        return [_digest(place.encode() + b"\0" + message) + end for place, message in pairs]


def hold(load: Load, raw: str, bad: Sequence[Bad], at: datetime) -> int:
    """Put those into quarantine that are not there; how many that are."""
    kept = [each for each in bad if each.places]
    if not kept:
        return 0
    name, lake = name_of(raw), load.desk.lake
    rows = pa.concat_tables([_table(each, load, at) for each in kept])
    known = lake.table(name)
    sql = "select * from rejected qualify row_number() over (partition by _id) = 1"
    if known is not None:
        sql += f" and _id not in (select _id from ({select_from(known)}))"
    with load.desk.session() as connection:
        connection.register("rejected", rows)
        new = connection.execute(sql).to_arrow_table()
    if new.num_rows:
        keys, properties = ["_id"], load.properties
        write(lake, name, new, mode="insert", keys=keys, evolve=True, properties=properties)
    return int(new.num_rows)


def _table(bad: Bad, load: Load, at: datetime) -> pa.Table:
    rows = len(bad.places)
    instant = pa.repeat(pa.scalar(at, pa.timestamp("us")), rows)
    text = pa.string()
    return pa.table(
        {
            "_reason": pa.array(bad.reasons, text),
            "_system": pa.repeat(pa.scalar(load.system, text), rows),
            PLACE: pa.array(bad.places, text),
            "_row": pa.array(bad.texts, text),
            "_id": pa.array(bad.ids, text),
            LOAD_ID: pa.repeat(pa.scalar(load.load_id, text), rows),
            LOADED_AT: instant,
            "_first_seen": instant,
            "_last_seen": instant,
        }
    )


def _digest(named: bytes) -> str:
    return md5(named, usedforsecurity=False).hexdigest()
