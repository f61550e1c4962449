"""Which columns that are gone look like new ones under another name: by the name, by the place
among the others, or by the values that the lake holds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import pyarrow as pa

from tarn.ingestion.contract import Terms
from tarn.ingestion.landed import Landed
from tarn.storage.duck import quoted
from tarn.storage.types import loses_nothing

_ALIKE = 0.6
"""From here on names are similar: amount and amonut 0.83, note and colour 0.2."""
_SAME = 0.8
"""So large a share of equal values is no chance."""
_PAIRS, _VALUES = 3, 5
"""Fewer rows of the same key, or fewer different values where there is no key, prove nothing."""
_LOOKED_AT = 1000
SAME_PLACE = "the same place"


@dataclass(frozen=True)
class Rename:
    """Two names for what looks like one column."""

    old: str
    new: str
    signs: tuple[str, ...]
    """Why, in words."""


def likely_renames(
    gone: Sequence[pa.Field],
    new: Mapping[str, pa.DataType | None],
    orders: tuple[Sequence[str], Sequence[str]],
    sample: pa.RecordBatch,
    landed: Landed,
    terms: Terms,
) -> dict[str, Rename]:
    """By the old name; each new name once, the surest first.

    new has the types of the new columns, None where all values are null. orders are the columns
    as they came last and as they come now.
    """
    values = _Values(sample, landed, terms)
    pairs = [
        Rename(old.name, name, tuple(_signs(old, name, kind, orders, values)))
        for old in gone
        for name, kind in new.items()
        if _may_be(old.type, kind)
    ]
    found: dict[str, Rename] = {}
    for pair in sorted(pairs, key=lambda pair: -len(pair.signs)):
        taken = {each.new for each in found.values()}
        if pair.signs and pair.old not in found and pair.new not in taken:
            found[pair.old] = pair
    return found


def _may_be(old: pa.DataType, new: pa.DataType | None) -> bool:
    """Whether values of the one type may be told as the other; files tell all as text."""
    if new is None or pa.types.is_string(new):
        return True
    return loses_nothing(old, new) or loses_nothing(new, old)


def _signs(
    old: pa.Field,
    new: str,
    kind: pa.DataType | None,
    orders: tuple[Sequence[str], Sequence[str]],
    values: "_Values",
) -> Iterator[str]:
    if _is_alike(old.name, new):
        yield "a similar name"
    if kind == old.type and _between(old.name, orders[0], orders) == _between(
        new, orders[1], orders
    ):
        yield SAME_PLACE
    if values.are_same(old.name, new):
        yield "the same values"


def _is_alike(old: str, new: str) -> bool:
    words = set(old.split("_")), set(new.split("_"))
    is_part = words[0] <= words[1] or words[1] <= words[0]
    return is_part or SequenceMatcher(None, old, new).ratio() >= _ALIKE


def _between(
    name: str, order: Sequence[str], orders: tuple[Sequence[str], Sequence[str]]
) -> tuple[str | None, str | None]:
    """The nearest columns to the left and right of those that were and are there."""
    common = set(orders[0]) & set(orders[1])
    at = order.index(name) if name in order else len(order)
    left = next((each for each in reversed(order[:at]) if each in common), None)
    right = next((each for each in order[at + 1 :] if each in common), None)
    return left, right


@dataclass(frozen=True)
class _Values:
    """Some rows as delivered beside what the lake holds."""

    sample: pa.RecordBatch
    landed: Landed
    terms: Terms

    def are_same(self, old: str, new: str) -> bool:
        """Whether rows of the same key largely hold the same; without key, whether largely the
        same values occur."""
        if not self.sample.num_rows or self.landed.schema is None:
            return False
        names = set(self.sample.schema.names) & set(self.landed.schema.names)
        keyed = bool(self.terms.keys) and set(self.terms.keys) <= names
        sql, least = (
            (self._by_key(old, new), _PAIRS) if keyed else (self._by_set(old, new), _VALUES)
        )
        with self.landed.desk.session() as connection:
            connection.register("incoming", self.sample.slice(0, _LOOKED_AT))
            row = connection.execute(sql).fetchone()
        assert row is not None
        compared, same, different = row
        return bool(compared >= least and different > 1 and same >= _SAME * compared)

    def _by_key(self, old: str, new: str) -> str:
        on = " and ".join(
            f"cast(i.{quoted(key)} as varchar) = cast(l.{quoted(key)} as varchar)"
            for key in self.terms.keys
        )
        was, now = f"l.{quoted(old)}", f"i.{quoted(new)}"
        kind = self._compared_as(old, new)
        return f"""
            select count(*), count(*) filter (cast({now} as {kind}) = cast({was} as {kind})),
                count(distinct {was})
            from incoming as i join ({self.landed.select}) as l on {on}
            where {was} is not null and {now} is not null
        """

    def _by_set(self, old: str, new: str) -> str:
        kind = self._compared_as(old, new)
        return f"""
            with now as (
                select distinct cast({quoted(new)} as {kind}) as value from incoming
                where {quoted(new)} is not null
            ), was as (
                select distinct cast({quoted(old)} as {kind}) as value
                from ({self.landed.select})
            )
            select count(*), count(was.value), count(*)
            from now left join was on was.value = now.value
        """

    def _compared_as(self, old: str, new: str) -> str:
        """Numbers have several spellings."""
        assert self.landed.schema is not None
        kinds = self.landed.schema.field(old).type, self.sample.schema.field(new).type
        return "double" if all(map(_is_number, kinds)) else "varchar"


def _is_number(kind: pa.DataType) -> bool:
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(bool(recognises(kind)) for recognises in numbers)
