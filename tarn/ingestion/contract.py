"""A table's contract at work: which columns and types may come, and which rows may pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tarn.errors import TarnError
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.landed import DELETED, DELETED_AT, PLACE, SOURCE_FILE
from tarn.ingestion.types import exact_cast, landing, named, plain, shown
from tarn.storage.types import loses_nothing
from tarn.strict_yaml import YamlFile, nearest

_OURS = (SOURCE_FILE, DELETED, DELETED_AT)
"""Columns that Tarn itself delivers: no contract concerns them."""
FLIP_ROWS = 10
"""From so many rows on, a column without one value of its type is not dirt but another column."""


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
    notes: tuple[str, ...]
    """Drift that was let in."""


@dataclass(frozen=True)
class Sifted:
    """A batch after the contract: rows that pass, rows as delivered that do not, and why."""

    good: pa.RecordBatch
    bad: pa.RecordBatch
    reasons: Sequence[str]


def shape(
    incoming: pa.Schema, types: Mapping[str, pa.DataType], table: pa.Schema | None, terms: Terms
) -> Shape:
    """Decide on columns and types; raises TarnError that names all that do not fit."""
    _check_names(incoming, table, terms)
    talks = _Talks(terms)
    for field in incoming:
        if field.name == PLACE:
            continue
        target = _target(field, types, terms)
        if field.name in _OURS:
            talks.fields.append(field)
        elif table is not None and field.name in table.names:
            talks.meet(table.field(field.name), target)
        elif target is not None:
            talks.add(pa.field(field.name, target), table is None)
    talks.miss([field for field in (table or ()) if field.name not in incoming.names])
    return talks.end()


class _Talks:
    """What the columns come to, one by one."""

    def __init__(self, terms: Terms) -> None:
        self.terms, self.contract = terms, terms.spec.contract
        self.fields: list[pa.Field] = []
        self.widened: dict[str, pa.DataType] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []

    def add(self, field: pa.Field, table_is_new: bool) -> None:
        """A column the table lacks."""
        what = f"new column {field.name} ({shown(field.type)})"
        if table_is_new or self.contract.columns == "evolve":
            self.fields.append(field)
        elif self.contract.columns == "freeze":
            self.problems.append(what)
        if not table_is_new:
            left_out = " left out" if self.contract.columns == "discard" else ""
            self.notes.append(what + left_out)

    def meet(self, known: pa.Field, target: pa.DataType | None) -> None:
        """A column the table has, delivered as `target`."""
        change = f"{known.name} from {shown(known.type)} to {target and shown(target)}"
        if target is None or self._fits(target, known.type):
            self.fields.append(pa.field(known.name, known.type))
        elif self.contract.types == "widen" and self._widens(known.type, target):
            self.fields.append(pa.field(known.name, target))
            self.widened[known.name] = target
            self.notes.append(f"widened column {change}")
        else:
            self.problems.append(f"changed column {change}")

    def miss(self, fields: Sequence[pa.Field]) -> None:
        """Columns of the table that are not delivered. A replaced table keeps them, all null."""
        if self.terms.spec.write == "replace":
            self.fields += fields
        if self.terms.is_objects:
            return
        gone = [f"column {field.name} is no longer delivered" for field in fields]
        if self.contract.columns == "freeze":
            self.problems += gone
        self.notes += gone

    def end(self) -> Shape:
        if self.problems:
            raise TarnError(
                "; ".join(self.problems),
                self.terms.where("contract"),
                "nothing was written; change the contract or declare the type under columns:,"
                " or delete the table to load it anew",
            )
        return Shape(pa.schema(self.fields), self.widened, tuple(self.notes))

    def _fits(self, target: pa.DataType, known: pa.DataType) -> bool:
        return loses_nothing(target, known) or self._is_whole_for_fraction(target, known)

    def _widens(self, known: pa.DataType, target: pa.DataType) -> bool:
        return loses_nothing(known, target) or self._is_whole_for_fraction(known, target)

    def _is_whole_for_fraction(self, source: pa.DataType, target: pa.DataType) -> bool:
        """JSON writes 2.0 as 2. Each value is checked when it is cast."""
        numbers = pa.types.is_integer(source) and pa.types.is_floating(target)
        return numbers and self.terms.is_objects


class Sieve:
    """Casts batches to a shape and takes out the rows that break the contract."""

    def __init__(self, shape: Shape, terms: Terms) -> None:
        self.shape, self.terms = shape, terms
        required = dict.fromkeys([*terms.keys, *terms.spec.contract.required])
        self.required = [name for name in required if name in shape.schema.names]
        self.rows = 0
        self._bad: dict[str, int] = {}
        self._nulls: dict[str, int] = {}
        self._session = duckdb.connect()
        self._session.execute("set TimeZone = 'UTC'")
        self._check_rules()

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
        flipped = [
            f"column {name} has no value that is {shown(self.shape.schema.field(name).type)}"
            for name, bad in self._bad.items()
            if bad >= FLIP_ROWS and bad == self.rows - self._nulls[name]
        ]
        if flipped:
            raise TarnError(
                "; ".join(flipped),
                self.terms.where("columns"),
                "nothing was written; declare the type it has now under columns:",
            )

    def close(self) -> None:
        self._session.close()

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


def _check_names(incoming: pa.Schema, table: pa.Schema | None, terms: Terms) -> None:
    """Each column a declaration names must be there."""
    spec = terms.spec
    named_in: dict[str, Sequence[str]] = {
        "primary_key": spec.primary_key,
        "cursor": (spec.cursor,) if spec.cursor else (),
        "partition_by": spec.partition_by,
        "required": spec.contract.required,
    }
    for key, names in named_in.items():
        at = ("contract", key) if key == "required" else (key,)
        _check_delivered(names, incoming.names, terms.where(*at), key)
    known = [*incoming.names, *(table.names if table else ())]
    if not terms.is_objects or table is None:
        _check_delivered(list(spec.columns), known, terms.where("columns"), "columns")


def _check_delivered(names: Sequence[str], known: Sequence[str], where: str, key: str) -> None:
    for name in names:
        if name not in known:
            what = f"column {name!r}, declared under {key}, is not delivered{nearest(name, known)}"
            raise TarnError(what, where, "nothing was written")


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
