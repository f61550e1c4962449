"""One table of a stream on its way into the lake: messages become a commit.

Decoded, held against the contract, stripped of what came before; what is bad goes to quarantine
first, then rows and positions are written at once. A commit that is refused has changed nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from tarn.ingestion.contract import Shape, Sieve, Terms
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.stream import (
    EVENT_DATE,
    OFFSET,
    PARTITION,
    SENT_AT,
    StreamTable,
    duration,
)
from tarn.ingestion.drift import Change, record
from tarn.ingestion.intake import Load, constant, in_lake_names
from tarn.ingestion.landed import LOAD_ID, LOADED_AT, PLACE, Desk, Landed
from tarn.ingestion.ledger import Counts
from tarn.ingestion.rows import widen
from tarn.ingestion.shaping import Arrival, Before, shape
from tarn.ingestion.streams import Batch, Position, Transport, positions
from tarn.ingestion.streams.absence import Absence
from tarn.ingestion.streams.decoding import Decoded, decoder
from tarn.ingestion.streams.hashes import Hashes
from tarn.ingestion.streams.known import Known
from tarn.ingestion.streams.quarantine import Bad, hold
from tarn.ingestion.types import exact_cast, named, shown
from tarn.settings import Settings
from tarn.storage.clock import now
from tarn.storage.writer import write

_OWN = (PARTITION, OFFSET, SENT_AT)
_REDELIVERED_WITHIN = timedelta(hours=1)
"""In which a message that was not acknowledged comes again."""
_MOST_SHAPES = 64
_TICK = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1)
_INSTANT = pa.timestamp("us")


@dataclass(frozen=True)
class Committed:
    """What one commit came to."""

    batches: Sequence[Batch]
    counts: Counts
    load: Load
    seconds: float = 0.0
    changes: Sequence[Change] = ()
    """Drift that is new."""


@dataclass
class _Talk:
    """What was agreed for messages of one shape."""

    shape: Shape
    sieve: Sieve
    untold: list[Change] = field(default_factory=list)


class Landing:
    """A table that takes messages. Commits are made one at a time."""

    def __init__(
        self, desk: Desk, declared: Declared, table: str, transport: Transport, home: Settings
    ) -> None:
        spec = declared.system.tables[table]
        assert isinstance(spec, StreamTable)
        self.desk, self.table, self.spec = desk, table, spec
        self.name = f"raw_{declared.name}.{table}"
        self.terms = Terms(
            self.name, spec, spec.primary_key, declared.file, ("tables", table), is_objects=True
        )
        self.offset_type, self.keeps_positions = transport.offset_type, transport.keeps_positions
        self.decoder = decoder(declared, table, spec, home)
        self.held: dict[str, positions.Held] = {}
        self.columns: dict[str, str] = {}
        """Types by name, in YAML's words, as last written."""
        self.delivered: dict[str, str] = {}
        """The columns of all messages so far, by name in the lake, as they spell them."""
        self.types = self._declared_types()
        self._landed = Landed(desk, self.name)
        self._talks: dict[tuple[object, ...], _Talk] = {}
        self._absence = Absence()
        self._waiting: list[Batch] = []
        """Messages without one good row, of a table that does not exist yet."""
        self._waiting_counts = Counts()
        self._last_at: datetime | None = None
        self._known = self._identities()
        self._is_filled = False

    def position(self, partition: str) -> Position | None:
        """How far the lake has read a partition. To be asked when it is taken on."""
        self.held[partition] = positions.held(self.desk.lake.table(self.name), partition)
        # Another process may have written it; what that knew is to be known here.
        self._is_filled = False
        return positions.position(self.held[partition])

    def land(self, batches: Sequence[Batch], load: Load) -> Committed | None:
        """Commit the messages; None if there is nothing to be written yet. Raises DriftError,
        OvertakenError and whatever keeps the lake from being written."""
        at = self._instant()
        decoded = self._decoded(batches)
        rows = self._with_places(decoded, batches)
        good, bad, changes = self._sifted(rows, decoded, batches, load)
        new = hold(load, self.name, [self._unread(decoded, batches), *bad], at)
        read = sum(len(each.values) for each in batches)
        fresh, hashes = self._fresh(good, at)
        # Of what is read again by position, this is the commit that tells of it.
        quarantined = read - good.num_rows if self.keeps_positions else new
        accepted = fresh.num_rows
        counts = Counts(read, accepted, quarantined, read - accepted - quarantined)
        done = [*self._waiting, *(replace(each, values=(), keys=()) for each in batches)]
        counts = _sum(self._waiting_counts, counts)
        if self._landed.table is None and not fresh.num_rows:
            self._waiting, self._waiting_counts = done, counts
            return None
        self._write(fresh, done, counts, load, at)
        for known, found in zip(self._known, hashes, strict=True):
            known.add(found, _micros(at))
        self._last_at = at
        self._waiting, self._waiting_counts = [], Counts()
        return Committed(done, counts, load, changes=changes)

    def looked_at(self, batches: Sequence[Batch]) -> tuple[pa.RecordBatch, Bad]:
        """Messages as rows that have a `_place`, and those that are none. Nothing is written."""
        decoded = self._decoded(batches)
        rows = self._with_places(decoded, batches)
        places = pa.array(_placed(rows), pa.string())
        return rows.append_column(PLACE, places), self._unread(decoded, batches)

    def forget(self) -> None:
        """What was not written is to be read again."""
        self._waiting, self._waiting_counts = [], Counts()
        self.held, self._is_filled = {}, False

    def close(self) -> None:
        for talk in self._talks.values():
            talk.sieve.close()

    def _declared_types(self) -> dict[str, pa.DataType]:
        types = {name: named(kind) for name, kind in self.spec.columns.items()}
        if self.spec.event_time:
            types.setdefault(self.spec.event_time, _INSTANT)
        own = {PARTITION: pa.string(), OFFSET: self.offset_type, SENT_AT: _INSTANT}
        return {**types, **own}

    def _identities(self) -> list[Known]:
        """By what an event is known that has come before."""
        found = []
        if self.spec.primary_key:
            within = duration(self.spec.deduplicate_within)
            found.append(Known(self.desk, self.name, self.spec.primary_key, within, lasting=False))
        if not self.keeps_positions:
            names = (PARTITION, OFFSET)
            found.append(Known(self.desk, self.name, names, _REDELIVERED_WITHIN, lasting=True))
        return found

    def _instant(self) -> datetime:
        """When these rows are loaded: later than those before them, even if the clock is set back:
        models take what is later than the last they have."""
        if self._last_at is None:
            self._last_at = self._landed.loaded_until or datetime.min
        return max(now(), self._last_at + _TICK if self._last_at > datetime.min else datetime.min)

    def _decoded(self, batches: Sequence[Batch]) -> Decoded:
        table = self._landed.schema
        known = {each.name: each.type for each in table or () if each.name not in _OWN}
        known |= {name: kind for name, kind in self.types.items() if name not in _OWN}
        values = list(chain.from_iterable(each.values for each in batches))
        return self.decoder.decode(values, pa.schema(known))

    def _with_places(self, decoded: Decoded, batches: Sequence[Batch]) -> pa.RecordBatch:
        """The rows with the columns that every stream has, and those that must be there."""
        taken = decoded.taken
        rows = in_lake_names(decoded.rows, self.spec.contract.renamed)
        for name, column in self._own_columns(batches).items():
            rows = rows.append_column(name, column.take(taken))
        for name, kind in self._needed(rows.schema.names).items():
            rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
        if EVENT_DATE in self.spec.partition_by:
            rows = rows.append_column(EVENT_DATE, self._dates(rows))
        return rows

    def _own_columns(self, batches: Sequence[Batch]) -> dict[str, pa.Array]:
        names = list(dict.fromkeys(each.partition for each in batches))
        number = {name: pa.scalar(i, pa.int32()) for i, name in enumerate(names)}
        parts = [pa.repeat(number[each.partition], len(each.values)) for each in batches]
        offsets = [pa.array(each.offsets, self.offset_type) for each in batches]
        sent = [pa.array(each.sent_at, pa.int64()) for each in batches]
        encoded = pa.DictionaryArray.from_arrays(pa.concat_arrays(parts), pa.array(names))
        return {
            PARTITION: encoded.dictionary_decode(),
            OFFSET: pa.concat_arrays(offsets),
            SENT_AT: pa.concat_arrays(sent).cast(_INSTANT),
        }

    def _needed(self, there: Sequence[str]) -> dict[str, pa.DataType]:
        """Columns that no message of these has, and that must be known all the same: a row that
        lacks what is required is judged by itself, and a new table is made whole."""
        spec, table = self.spec, self._landed.schema
        names = [*spec.primary_key, *spec.contract.required, *spec.partition_by]
        names += [spec.event_time] if spec.event_time else []
        names += list(spec.columns) if table is None else []
        known = {each.name: each.type for each in table} if table is not None else {}
        return {
            name: known.get(name, self.types.get(name, pa.string()))
            for name in dict.fromkeys(names)
            if name not in there and name != EVENT_DATE
        }

    def _dates(self, rows: pa.RecordBatch) -> pa.Array:
        """The day of each event; of one that does not say, that of its message."""
        sent = rows.column(SENT_AT)
        if self.spec.event_time is None:
            return sent.cast(pa.date32(), safe=False)
        said, _ = exact_cast(rows.column(self.spec.event_time), _INSTANT)
        return pc.coalesce(said, sent).cast(pa.date32(), safe=False)

    def _sifted(
        self,
        rows: pa.RecordBatch,
        decoded: Decoded,
        batches: Sequence[Batch],
        load: Load,
    ) -> tuple[pa.RecordBatch, list[Bad], list[Change]]:
        """Rows that keep the contract, those that do not, and the drift that is told."""
        if not rows.num_rows:
            return rows, [], []
        talk = self._talk(rows, decoded, load)
        talk.sieve.begin()
        sifted = talk.sieve.sift(rows)
        talk.sieve.check_flips()
        good, changes = self._without_noise(sifted.good, talk)
        bad: list[Bad] = []
        if sifted.bad.num_rows:
            places = pa.array(_placed(sifted.bad), pa.string())
            marked = sifted.bad.append_column(PLACE, places)
            bad.append(Bad.of_rows(load, marked, sifted.reasons, _by_place(batches)))
        return good, bad, record(self.desk, load.load_id, load.system, self.table, changes)

    def _without_noise(
        self, good: pa.RecordBatch, talk: _Talk
    ) -> tuple[pa.RecordBatch, list[Change]]:
        """A column that only messages in quarantine have is none of the table's."""
        known = talk.shape.known
        noise = {
            name
            for name in good.schema.names
            if known and name not in known and good.column(name).null_count == good.num_rows
        }
        told = [each for each in talk.untold if each.column not in noise]
        talk.untold = [each for each in talk.untold if each.column in noise]
        return good.drop_columns(sorted(noise)) if noise else good, told

    def _talk(self, rows: pa.RecordBatch, decoded: Decoded, load: Load) -> _Talk:
        """What was agreed before for messages like these, or is now."""
        gone = self._absence.after(rows, self._landed)
        # With a few rows more may be missing by chance.
        size = min(rows.num_rows, 1000).bit_length()
        key = (*zip(rows.schema.names, rows.schema.types, strict=True), size, gone)
        if key not in self._talks:
            if len(self._talks) >= _MOST_SHAPES:
                self.close()
                self._talks = {}
            arrival = Arrival(
                rows.schema,
                self._meant(rows.schema, decoded),
                rows,
                {self.spec.contract.renamed.get(n, n): said for n, said in decoded.spelt.items()},
                rows.num_rows,
                gone=gone,
                renamed={
                    old: new
                    for new, old in self.spec.contract.renamed.items()
                    if new in decoded.rows.schema.names
                },
            )
            seen = [each for each in load.noticed if each.table == self.table]
            before = Before(self._landed.again(), load.delivered.get(self.table, {}), seen)
            agreed = shape(arrival, before, self.terms)
            if agreed.widened:
                widen(self._landed, agreed, load.properties)
                self._refresh()
            self.delivered |= agreed.delivered
            self._talks[key] = _Talk(agreed, Sieve(agreed, self.terms), list(agreed.changes))
        return self._talks[key]

    def _meant(self, came: pa.Schema, decoded: Decoded) -> Mapping[str, pa.DataType]:
        """Types of columns that come as text because a value is not of them: the contract takes
        out that row, and no other."""
        table = self._landed.schema if self._landed.schema is not None else ()
        known = {each.name: each.type for each in table if each.name in came.names}
        texts = {name for name in known if came.field(name).type == pa.string()}
        meant = {self.spec.contract.renamed.get(n, n): kind for n, kind in decoded.types.items()}
        return {**meant, **{name: known[name] for name in texts}, **self.types}

    def _unread(self, decoded: Decoded, batches: Sequence[Batch]) -> Bad:
        """Messages that are no rows."""
        if not decoded.rejected:
            return Bad.of_messages((), (), (), {})
        places = [_place(each.partition, offset) for each in batches for offset in each.offsets]
        return Bad.of_messages(
            [places[each.index] for each in decoded.rejected],
            [each.text for each in decoded.rejected],
            [each.reason for each in decoded.rejected],
            _by_place(batches),
        )

    def _fresh(self, good: pa.RecordBatch, at: datetime) -> tuple[pa.RecordBatch, list[Hashes]]:
        """The rows that have not come before, and their hashes by each identity."""
        if not self._is_filled:
            # By the clock of loads: what came last before a stop is known, however long that was.
            until = _micros(self._landed.again().loaded_until or at)
            for known in self._known:
                known.fill(until)
            self._is_filled = True
        hashes: list[Hashes] = []
        for known in self._known:
            met = known.meet(good, _micros(at))
            hashes = [each.take(met.fresh.to_numpy()) for each in hashes] + [met.hashes]
            good = good.take(met.fresh)
        return good, hashes

    def _write(
        self,
        rows: pa.RecordBatch,
        batches: Sequence[Batch],
        counts: Counts,
        load: Load,
        at: datetime,
    ) -> None:
        stamped = rows.append_column(LOAD_ID, constant(load.load_id, rows.num_rows))
        stamped = stamped.append_column(
            LOADED_AT, pa.repeat(pa.scalar(at, _INSTANT), rows.num_rows)
        )
        before = {each.partition: self.held.get(each.partition, ()) for each in batches}
        after = {
            each.partition: positions.numbers(each.position, before[each.partition])
            for each in batches
            if each.position is not None
        }
        fenced = {name: before[name] for name in after}
        # Without positions a commit that adds no row says nothing.
        write(
            self.desk.lake,
            self.name,
            pa.Table.from_batches([stamped]),
            mode="append",
            partition_by=self.spec.partition_by,
            evolve=self.spec.contract.columns == "evolve",
            properties={**load.properties, **_told(counts)},
            transactions=positions.transactions(after),
            fence=positions.fence(fenced) if fenced else None,
        )
        self.held |= after
        self.columns = {each.name: shown(each.type) for each in rows.schema}
        schema = self._landed.schema
        if schema is None or set(rows.schema.names) - set(schema.names):
            self._refresh()

    def _refresh(self) -> None:
        """The table has other columns now."""
        self._landed = self._landed.again()
        self.close()
        self._talks = {}


def _placed(rows: pa.RecordBatch) -> list[str]:
    pairs = zip(rows.column(PARTITION).to_pylist(), rows.column(OFFSET).to_pylist(), strict=True)
    return [_place(partition, offset) for partition, offset in pairs]


def _by_place(batches: Sequence[Batch]) -> dict[str, bytes]:
    """Messages by what names them."""
    return {
        _place(each.partition, offset): value or b""
        for each in batches
        for offset, value in zip(each.offsets, each.values, strict=True)
    }


def _place(partition: str, offset: object) -> str:
    return f"{partition} offset {offset}"


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(*map(sum, zip(vars(one).values(), vars(other).values(), strict=True)))


def _told(counts: Counts) -> Mapping[str, str]:
    """Of a commit: read = accepted + quarantined + deduplicated."""
    return {f"tarn.rows_{name}": str(rows) for name, rows in vars(counts).items()}


def _micros(at: datetime) -> int:
    """Since 1970; `at` is UTC without zone."""
    return (at - _EPOCH) // _TICK
