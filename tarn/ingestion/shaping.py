"""Which columns and types a load's rows get, decided before the first of them is written: what
the source changed is compared with the table, let in, or refused by name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from tarn.ingestion.contract import Shape, Terms, by_chance
from tarn.ingestion.drift import Change, DriftError, Kind, Noticed, Verdict, dropped_before
from tarn.ingestion.landed import DELETED, DELETED_AT, PLACE, SOURCE_FILE, Landed
from tarn.ingestion.renames import SAME_PLACE, Rename, likely_renames
from tarn.ingestion.types import landing, named, shown
from tarn.storage.types import loses_nothing
from tarn.strict_yaml import nearest

_OURS = (PLACE, SOURCE_FILE, DELETED, DELETED_AT)
"""Columns that Tarn itself delivers: no contract concerns them."""
_DLT = "_dlt_"
_NESTED = "__"
_MEND = "ask the owner of the source, or mend the declaration"
_ANEW = (
    "change the contract or declare the type under columns:, or delete the table to load it anew"
)


@dataclass(frozen=True)
class Arrival:
    """What a source delivers, as far as it is known when its first rows are there."""

    schema: pa.Schema
    types: Mapping[str, pa.DataType]
    """Types that the source declares where its rows carry others."""
    sample: pa.RecordBatch
    """The first rows."""
    spelt: Mapping[str, str] = field(default_factory=dict)
    """Names as the source spells them, by name in the lake."""
    rows: int | None = None
    """How many, where that is known."""
    lists: Sequence[str] = ()
    """Fields that hold lists, which become tables of their own."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Columns that came by another name: that name, by the one in the lake."""
    gone: frozenset[str] | None = None
    """Columns that rows have lacked for too long, where more is known than from these rows."""

    @property
    def delivered(self) -> dict[str, str]:
        """The source's own columns in its order, and how it spells them."""
        names = (name for name in self.schema.names if not _is_ours(name))
        return {name: self.spelt.get(name, name) for name in names}


@dataclass(frozen=True)
class Before:
    """What is known of the table from earlier loads."""

    landed: Landed
    delivered: Mapping[str, str]
    """As `Arrival.delivered` was; empty if nobody knows."""
    noticed: Sequence[Noticed]

    @cached_property
    def dropped(self) -> set[str]:
        """Columns that were gone already when the table was loaded last."""
        return dropped_before(self.noticed)


def shape(arrival: Arrival, before: Before, terms: Terms) -> Shape:
    """Decide on columns and types; raises DriftError that names all that do not fit."""
    return _Talks(arrival, before, terms).end()


class _Talks:
    """What the columns come to, one by one."""

    def __init__(self, arrival: Arrival, before: Before, terms: Terms) -> None:
        self.arrival, self.before, self.terms = arrival, before, terms
        self.contract, self.table = terms.spec.contract, before.landed.schema
        self.fields: list[pa.Field] = []
        self.widened: dict[str, pa.DataType] = {}
        self.changes: list[Change] = []
        self.problems: list[tuple[Change | None, str, str, str]] = []
        """Change, what is wrong, where that is declared, and what to do."""
        self.targets = {
            each.name: _target(each, arrival.types, terms)
            for each in arrival.schema
            if each.name not in _OURS
        }
        names = arrival.schema.names
        known = self.table or pa.schema([])
        self.gone = [each for each in known if each.name not in names and not _is_ours(each.name)]
        self.new = [name for name in self.targets if name not in known.names]
        self._go()

    def _go(self) -> None:
        nested = self._nested()
        renames = self._renames(nested)
        self._named(renames)
        for name in self.arrival.schema.names:
            if name == PLACE:
                continue
            if name in _OURS:
                self.fields.append(self.arrival.schema.field(name))
            elif self.table is not None and name in self.table.names:
                self._meet(self.table.field(name), self.targets[name])
            elif (target := self.targets[name]) is not None:
                self._add(pa.field(name, target), {each.new for each in renames.values()} | nested)
        for each in self.gone:
            self._miss(each, renames)
        self._told_otherwise()

    def end(self) -> Shape:
        if self.problems:
            fixes = dict.fromkeys(fix for *_, fix in self.problems)
            raise DriftError(
                "; ".join(dict.fromkeys(what for _, what, _, _ in self.problems)),
                self.problems[0][2],
                "; ".join(["nothing was written", *fixes]),
                [change for change, *_ in self.problems if change is not None],
            )
        known = frozenset(self.table.names if self.table is not None else ())
        changes, delivered = tuple(self.changes), self.arrival.delivered
        return Shape(pa.schema(self.fields), self.widened, changes, delivered, known)

    def _change(
        self,
        column: str | None,
        kind: Kind,
        before: str | None,
        after: str | None,
        told: str,
        verdict: Verdict = "accepted",
    ) -> None:
        self.changes.append(Change(column, kind, before, after, verdict, told))

    def _block(
        self,
        column: str,
        kind: Kind,
        before: str | None,
        after: str | None,
        told: str,
        fix: str = _ANEW,
        at: Sequence[str] = ("contract",),
    ) -> None:
        change = Change(column, kind, before, after, "blocked", told)
        self.problems.append((change, told, self.terms.where(*at), fix))

    def _named(self, renames: Mapping[str, Rename]) -> None:
        """Each column that a declaration names must be there."""
        known = [*self.arrival.schema.names, *(self.table.names if self.table else ())]
        told: set[str] = set()
        for key, names in self._declared().items():
            for name in names:
                is_there = name in self.arrival.schema.names
                if is_there or name in told or self._may_lack(key, name):
                    continue
                told.add(name)
                at = ("contract", key) if key == "required" else (key,)
                near = [each for each in known if each != name]
                what = f"column {name!r}, declared under {key}, is not delivered"
                what += nearest(name, near)
                if self.table is None or name not in self.table.names:
                    self.problems.append((None, what, self.terms.where(*at), _MEND))
                    continue
                rename, kind = renames.get(name), shown(self.table.field(name).type)
                if rename:
                    self._block(name, "renamed", name, rename.new, what, _one(rename), at)
                else:
                    self._block(name, "dropped", kind, None, what, _MEND, at)

    def _declared(self) -> dict[str, Sequence[str]]:
        spec = self.terms.spec
        rules = [
            name for name in (self.table or pa.schema([])).names if _in_rules(name, spec.rules)
        ]
        return {
            "primary_key": spec.primary_key,
            "cursor": (spec.cursor,) if spec.cursor else (),
            "partition_by": spec.partition_by,
            "required": self.contract.required,
            "columns": list(spec.columns),
            "rules": rules,
        }

    def _may_lack(self, key: str, name: str) -> bool:
        """Of objects a few may lack by chance even what all should have; such rows are judged
        one by one. What is only described may be missing until it is known to be there."""
        if self.terms.is_objects and self.table is not None:
            is_few = name in self.table.names and by_chance(self.arrival.rows or 0)
            return key in ("columns", "rules") or (key == "required" and is_few)
        return False

    def _renames(self, nested: set[str]) -> dict[str, Rename]:
        gone = [
            each
            for each in self.gone
            if each.name not in {*self.before.dropped, *self.contract.dropped}
            and self._was_always_there(each.name)
        ]
        told = {name for name in self.new if name.startswith(_DLT)} | nested
        new = {
            name: self.targets[name]
            for name in self.new
            if name not in told and self._is_always_here(name)
        }
        if not gone or not new or self.table is None:
            return {}
        orders = [*self.before.delivered] or self.table.names, [*self.arrival.delivered]
        found = likely_renames(
            gone, new, orders, self.arrival.sample, self.before.landed, self.terms
        )
        # Fields of objects have no place of their own.
        weak = (SAME_PLACE,) if self.terms.is_objects else ()
        return {name: each for name, each in found.items() if each.signs != weak}

    def _was_always_there(self, name: str) -> bool:
        """Columns of tables are; a field of objects is if none of the lake's rows lacks it."""
        if not self.terms.is_objects or not self._by_chance(name):
            return True
        landed = self.before.landed
        return not by_chance(landed.rows) and not landed.nulls(name)

    def _is_always_here(self, name: str) -> bool:
        sample = self.arrival.sample
        return not self.terms.is_objects or not sample.column(name).null_count

    def _by_chance(self, name: str) -> bool:
        """Whether rows may well come without a column that the lake's rows have."""
        if self.arrival.gone is not None:
            return name not in self.arrival.gone
        return by_chance(self.arrival.rows or 0, self.before.landed.share_of_nulls(name))

    def _nested(self) -> set[str]:
        """Fields of objects that changed between value, object and list: their new columns."""
        if not self.terms.is_objects or self.table is None:
            return set()
        found: set[str] = set()
        gone = {each.name for each in self.gone} - {*self.before.dropped, *self.contract.dropped}
        for name in self.new:
            start = name.partition(_NESTED)[0]
            if start in self.contract.dropped:
                continue
            if was := self._was(name, start, gone):
                now = "object" if _NESTED in name else shown(self.targets[name] or pa.string())
                self._reshaped(start, was, now)
                found.add(name)
        for start in self.arrival.lists:
            if start in gone or _of(start, gone):
                was = shown(self.table.field(start).type) if start in gone else "object"
                self._reshaped(start, was, "list")
        return found

    def _was(self, name: str, start: str, gone: set[str]) -> str | None:
        """What a field was that now gives the column `name`, if it was something else."""
        assert self.table is not None
        if _NESTED in name:
            if start in gone:
                return shown(self.table.field(start).type)
        elif _of(name, gone) and not _of(name, self.arrival.schema.names):
            return "object"
        if start in self.arrival.lists:
            return None
        landed = self.before.landed
        return "list" if landed.desk.lake.table(f"{landed.name}{_NESTED}{start}") else None

    def _reshaped(self, name: str, was: str, now: str) -> None:
        self._block(
            name,
            "retyped",
            was,
            now,
            f"field {name} was {was} and is {now} now",
            f"say contract: {{dropped: [{name}]}} to take it as new columns",
        )

    def _add(self, field: pa.Field, told_of: set[str]) -> None:
        """A column the table lacks."""
        kind = shown(field.type)
        what = f"new column {field.name} ({kind})"
        if self.table is None or self.contract.columns == "evolve":
            self.fields.append(field)
        if self.table is None or field.name in told_of or field.name.startswith(_DLT):
            return
        if self.contract.columns == "freeze":
            self._block(field.name, "added", None, kind, what)
        elif self.contract.columns == "discard":
            self._change(field.name, "added", None, kind, f"{what} left out", "discarded")
        else:
            self._change(field.name, "added", None, kind, what)

    def _meet(self, known: pa.Field, target: pa.DataType | None) -> None:
        """A column the table has, delivered as `target`."""
        name, was, now = known.name, shown(known.type), shown(target or known.type)
        change = f"{name} from {was} to {now}"
        if target is None or self._fits(target, known.type):
            self.fields.append(pa.field(name, known.type))
            if not self.terms.is_objects and was != now:
                self._change(name, "retyped", was, now, f"narrower column {change}")
        elif self.contract.types == "widen" and self._fits(known.type, target):
            self.fields.append(pa.field(name, target))
            self.widened[name] = target
            self._change(name, "retyped", was, now, f"widened column {change}", "widened")
        else:
            self._block(name, "retyped", was, now, f"changed column {change}")
        if name in self.before.dropped:
            self._change(name, "added", None, now, f"column {name} is delivered again")

    def _miss(self, field: pa.Field, renames: Mapping[str, Rename]) -> None:
        """A column of the table that is not delivered. A replaced table keeps it, all null."""
        name, kind = field.name, shown(field.type)
        if self.terms.spec.write == "replace" or name in self.contract.required:
            self.fields.append(field)
        if any(change and change.column == name for change, *_ in self.problems):
            return
        told = f"column {name} is no longer delivered"
        if rename := renames.get(name):
            self._block(name, "renamed", name, rename.new, _looks(rename), _one(rename))
        elif name in self.contract.dropped:
            self._change(name, "dropped", kind, None, told)
        elif self.contract.columns == "freeze" and not self.terms.is_objects:
            self._block(name, "dropped", kind, None, told)
        elif not self.terms.is_objects or not self._by_chance(name):
            self._change(name, "dropped", kind, None, told)

    def _told_otherwise(self) -> None:
        """The same columns by other names, in another order or spelling."""
        for old, new in self.arrival.renamed.items():
            self._change(old, "renamed", old, new, f"column {new} is kept in {old}")
        was, now = self.before.delivered, self.arrival.delivered
        common = [name for name in now if name in was]
        for name in common:
            if was[name] != now[name] and name not in self.arrival.renamed:
                told = f"column {name} is spelt {now[name]}, and was {was[name]}"
                self._change(name, "recased", was[name], now[name], told)
        order = [name for name in was if name in now]
        if order != common and not self.terms.is_objects:
            orders = ", ".join(order), ", ".join(common)
            self._change(None, "reordered", *orders, "the columns come in another order")

    def _fits(self, source: pa.DataType, target: pa.DataType) -> bool:
        """Whether `target` holds every value of `source`. JSON writes 2.0 as 2; then each value
        is checked when it is cast."""
        is_day = pa.types.is_date(source) and pa.types.is_timestamp(target)
        is_whole = pa.types.is_integer(source) and pa.types.is_floating(target)
        return loses_nothing(source, target) or is_day or (is_whole and self.terms.is_objects)


def _target(field: pa.Field, types: Mapping[str, pa.DataType], terms: Terms) -> pa.DataType | None:
    """The type a column is meant to have; None when all its values are null and nobody says."""
    if declared := terms.spec.columns.get(field.name):
        return named(declared)
    if field.name in types:
        return types[field.name]
    if pa.types.is_null(field.type):
        return None
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    return landing(pa.field(field.name, kind), terms.name)


def _is_ours(name: str) -> bool:
    return name in _OURS or name.startswith(_DLT)


def _of(name: str, columns: Iterable[str]) -> bool:
    """Whether one of the columns is part of the object `name`."""
    return any(each.startswith(f"{name}{_NESTED}") for each in columns)


def _in_rules(name: str, rules: Sequence[str]) -> bool:
    word = re.compile(rf"(?<![\w']){re.escape(name)}(?![\w'(])", re.IGNORECASE)
    return any(word.search(rule) for rule in rules)


def _looks(rename: Rename) -> str:
    signs = ", ".join(rename.signs)
    return f"column {rename.old} is gone and {rename.new} is new, which looks renamed ({signs})"


def _one(rename: Rename) -> str:
    old, new = rename.old, rename.new
    return (
        f"say contract: {{renamed: {{{new}: {old}}}}} to go on in column {old},"
        f" or {{dropped: [{old}]}} if {new} is another column"
    )
