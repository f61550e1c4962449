"""A table's contract at work: which columns and types may come, and which rows may pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tarn.errors import TarnError
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.drift import Change, DriftError, Kind
from tarn.ingestion.landed import DELETED, DELETED_AT
from tarn.ingestion.types import exact_cast, plain, shown
from tarn.strict_yaml import YamlFile

FLIP_ROWS = 10
"""From so many rows on, a column without one value of its type is not dirt but another column."""
_CHANCE, _CHANCE_ROWS = 0.01, 3


@dataclass(frozen=True)
class Terms:
    """What is agreed for one table, and where its declaration says so."""

    name: str
    """`raw_<system>.<table>`."""
    spec: Table
    keys: tuple[str, ...]
    file: YamlFile
    at: tuple[str | int, ...]
    """Place of the table in the file."""
    is_objects: bool = False
    """Types were inferred from values: whole numbers may be meant as fractions, and a column
    may be missing only because no row of this load has it."""

    def where(self, *key: str | int) -> str:
        return f"{self.name} ({self.file.where(*self.at, *key)})"


@dataclass(frozen=True)
class Shape:
    """How the delivered columns become the table's."""

    schema: pa.Schema
    """Columns to write, in order."""
    widened: Mapping[str, pa.DataType]
    """Columns of the table that need a wider type first."""
    changes: tuple[Change, ...]
    """Drift that is let in."""
    delivered: Mapping[str, str]
    """The source's columns in its order and spelling, by name in the lake."""
    known: frozenset[str]
    """Columns that the table has already."""


@dataclass(frozen=True)
class Sifted:
    """A batch after the contract: rows that pass, rows as delivered that do not, and why."""

    good: pa.RecordBatch
    bad: pa.RecordBatch
    reasons: Sequence[str]


class Sieve:
    """Casts batches to a shape and takes out the rows that break the contract."""

    def __init__(self, shape: Shape, terms: Terms) -> None:
        self.shape, self.terms = shape, terms
        required = dict.fromkeys([*terms.keys, *terms.spec.contract.required])
        self.required = [name for name in required if name in shape.schema.names]
        self.rows = 0
        self._bad: dict[str, int] = {}
        self._nulls: dict[str, int] = {}
        if terms.spec.rules:
            self._check_rules()

    def begin(self) -> None:
        """Judge what comes from here on by itself."""
        self.rows, self._bad, self._nulls = 0, {}, {}

    def sift(self, batch: pa.RecordBatch) -> Sifted:
        casts = [self._cast(batch, field) for field in self.shape.schema]
        columns = [column for column, _ in casts]
        result = pa.RecordBatch.from_arrays(columns, schema=self.shape.schema)
        self.rows += batch.num_rows
        broken = list(self._broken(batch, result, [bad for _, bad in casts]))
        if not broken:
            return Sifted(result, batch.slice(0, 0), ())
        rejected = reduce(pc.or_, [mask for mask, _ in broken])
        rejected = pc.and_not(rejected, _is_deletion(batch))
        positions = pc.indices_nonzero(rejected).to_pylist()
        lists = [(set(pc.indices_nonzero(mask).to_pylist()), reasons) for mask, reasons in broken]
        told = ["; ".join(why(i) for at, why in lists if i in at) for i in positions]
        return Sifted(result.filter(pc.invert(rejected)), batch.filter(rejected), told)

    def check_flips(self) -> None:
        """Raise when a column never came in its type: that is a change, not a few bad rows."""
        kinds = {field.name: shown(field.type) for field in self.shape.schema}
        flipped = {
            name: f"column {name} has no value that is {kinds[name]}"
            for name, bad in self._bad.items()
            if bad >= FLIP_ROWS and bad == self.rows - self._nulls[name]
        }
        self._refuse("retyped", flipped, "columns", "declare the type it has now under columns:")
        emptied = {
            name: f"column {name}, which is required, has no value in {self.rows:,} rows"
            for name in self.required
            if name in self.nulled() and self.rows >= FLIP_ROWS
        }
        fix = "ask the owner of the source, or take it out of required:"
        self._refuse("nulled", emptied, "contract", fix)

    def nulled(self) -> list[str]:
        """Columns of the table that came without one value."""
        known = (n for n in self._nulls if n in self.shape.known and n != DELETED_AT)
        return [name for name in known if self.rows and self._nulls[name] == self.rows]

    def _refuse(self, kind: Kind, told: Mapping[str, str], key: str, fix: str) -> None:
        changes = [
            Change(name, kind, shown(self.shape.schema.field(name).type), None, "blocked", what)
            for name, what in told.items()
        ]
        if changes:
            where, what = self.terms.where(key), "; ".join(told.values())
            raise DriftError(what, where, f"nothing was written; {fix}", changes)

    def close(self) -> None:
        if self.terms.spec.rules:
            self._session.close()

    @cached_property
    def _session(self) -> duckdb.DuckDBPyConnection:
        """For the rules."""
        session = duckdb.connect()
        session.execute("set TimeZone = 'UTC'")
        return session

    def _cast(self, batch: pa.RecordBatch, field: pa.Field) -> tuple[pa.Array, pa.Array | None]:
        if field.name not in batch.schema.names:
            return pa.nulls(batch.num_rows, field.type), None
        column = batch.column(field.name)
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        result, bad = exact_cast(column, field.type)
        self._nulls[field.name] = self._nulls.get(field.name, 0) + column.null_count
        if bad is not None:
            self._bad[field.name] = self._bad.get(field.name, 0) + pc.sum(bad).as_py()
        return result, bad

    def _broken(
        self, batch: pa.RecordBatch, result: pa.RecordBatch, bad: Sequence[pa.Array | None]
    ) -> Iterator[tuple[pa.Array, "_Reason"]]:
        """For each kind of breach the rows it befell and what to say of one."""
        for field, mask in zip(self.shape.schema, bad, strict=True):
            if mask is not None:
                yield mask, _NotA(batch.column(field.name), field)
        for name in self.required:
            # What could not be cast is null too, and told above already.
            column = batch.column(name) if name in batch.schema.names else result.column(name)
            if column.null_count:
                yield pc.is_null(column), _Said(f"{name} is null")
        if self.terms.spec.rules and result.num_rows:
            yield from self._rules(result)

    def _rules(self, result: pa.RecordBatch) -> Iterator[tuple[pa.Array, "_Reason"]]:
        self._session.register("incoming", result)
        verdicts = self._session.execute(self._rules_sql()).to_arrow_table()
        for rule, verdict in zip(self.terms.spec.rules, verdicts.columns, strict=True):
            broken = pc.fill_null(pc.invert(verdict.combine_chunks()), False)
            if pc.any(broken).as_py():
                yield broken, _Said(f"breaks the rule {rule}")

    def _rules_sql(self) -> str:
        verdicts = [
            f"cast(({rule}) as boolean) as r{i}" for i, rule in enumerate(self.terms.spec.rules)
        ]
        return f"select {', '.join(verdicts)} from incoming"

    def _check_rules(self) -> None:
        self._session.register("incoming", self.shape.schema.empty_table())
        for i, rule in enumerate(self.terms.spec.rules):
            try:
                self._session.execute(f"select cast(({rule}) as boolean) from incoming")
            except duckdb.Error as error:
                what = " ".join(str(error).partition("\n\nLINE")[0].split())
                raise TarnError(f"rule {rule!r}: {what}", self.terms.where("rules", i)) from error


def _is_deletion(batch: pa.RecordBatch) -> pa.Array:
    """Rows that say that one is gone: they need no values, and may not be kept out."""
    if DELETED in batch.schema.names:
        return batch.column(DELETED)
    if DELETED_AT in batch.schema.names:
        return pc.is_valid(batch.column(DELETED_AT))
    return pa.repeat(pa.scalar(False), batch.num_rows)


class _Reason:
    def __call__(self, row: int) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class _Said(_Reason):
    text: str

    def __call__(self, row: int) -> str:
        return self.text


@dataclass(frozen=True)
class _NotA(_Reason):
    column: pa.Array
    field: pa.Field

    def __call__(self, row: int) -> str:
        value = plain(repr(self.column[row].as_py()))
        return f"{self.field.name}: {value} is not {shown(self.field.type)}"


def by_chance(rows: int, share_of_nulls: float = 0.0) -> bool:
    """Whether so many rows may all lack a value that so large a share of others lack."""
    return rows < _CHANCE_ROWS or share_of_nulls**rows > _CHANCE
