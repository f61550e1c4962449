"""The one Delta writer: ingestion, streams and dbt all change tables through `write`.

Values are never bent: a type that does not fit the table is refused by name before anything is
written, where delta-rs alone would store 1.7 as 1.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal, TypeAlias
from uuid import uuid4

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.table import TableMerger

from tarn.errors import TarnError
from tarn.storage.disk import disk_failure
from tarn.storage.lake import Lake
from tarn.storage.merging import MERGE_SECONDS, Merge, Plan, in_time, kept
from tarn.storage.policy import Layout
from tarn.storage.predicates import column
from tarn.storage.types import cast_to, deltable, fit

log = logging.getLogger(__name__)

Mode = Literal["append", "replace", "replace_where", "merge", "insert"]
Rows: TypeAlias = "pa.Table | Callable[[], pa.RecordBatchReader]"
"""A table, or a function that opens a stream of it: a stream is read again after a conflict."""

ROW_GROUP_ROWS = 122_880
"""One DuckDB vector group: scans of star joins ran a quarter faster than with larger groups."""
CONFIGURATION = {
    # delta-rs's own 100 makes opening a busy table slow.
    "delta.checkpointInterval": "10",
    # A kept release may need old entries of the log; `upkeep` knows which.
    "delta.enableExpiredLogCleanup": "false",
}
"""Of each table made."""
ATTEMPTS = 12
_LONGEST_PAUSE = 2.0
"""Seconds."""
_ENCODED = [pa.dictionary(index, pa.string()) for index in (pa.int8(), pa.int16(), pa.int32())]
WRITE_ID = "tarn.write_id"
UPKEEP = "tarn.upkeep"
"""Key in a commit's metadata: which kind of upkeep made it."""
READS = "tarn.reads"
"""Key in a commit's metadata: the versions its maker read, as `schema.table@version,…`."""


class OvertakenError(TarnError):
    """The table's application transactions are not where the writer believed them to be."""


@dataclass(frozen=True)
class Written:
    """What one write came to."""

    version: int
    rows: int
    """Rows handed to the table: appended, or offered to the merge."""


def write(
    lake: Lake,
    name: str,
    rows: Rows,
    *,
    mode: Mode,
    keys: Sequence[str] = (),
    partition_by: Sequence[str] = (),
    where: str | None = None,
    evolve: bool = False,
    not_null: Sequence[str] = (),
    description: str | None = None,
    comments: Mapping[str, str] | None = None,
    properties: Mapping[str, str] | None = None,
    transaction: tuple[str, int] | None = None,
    transactions: Mapping[str, int] | None = None,
    fence: Mapping[str, int | None] | None = None,
    deleted: str | None = None,
) -> Written:
    """Change the table `schema.table` in one atomic commit and say which version that made.

    append adds rows; replace puts them in place of everything, schema included; replace_where
    in place of the rows for which the SQL predicate `where` is true; merge updates rows whose
    `keys` are equal and inserts the others; insert does only the latter. Rows that would change
    nothing make no commit. A missing table is created by any mode.

    deleted names a boolean column of the rows that is not kept: where true, a merge deletes.

    evolve lets columns be added. not_null names columns in which a null is refused. description
    is what a table that is created says of itself; to change it later, delta-rs would wait with
    Python's lock held, for ever if another thread streams. comments are column descriptions.
    properties tell who writes and are kept in the table's history. transaction is (application,
    number): readers of the log see how far that application came; transactions are several. fence
    says how far the caller believes applications to be, None for nowhere: the commit is made only
    where that is so, then even without rows.

    Raises OvertakenError when it is not so, and TarnError when types or nulls do not fit, or when
    other writers keep winning. In a rehearsal the rows are read and checked, and nothing is
    written.
    """
    change = _Change(
        lake=lake,
        name=name,
        rows=rows,
        mode=mode,
        keys=tuple(keys),
        partition_by=tuple(partition_by),
        where=where,
        evolve=evolve,
        not_null=tuple(not_null),
        description=description,
        comments=comments or {},
        properties={**lake.stamp, **(properties or {}), WRITE_ID: uuid4().hex},
        transactions={**dict([transaction] if transaction else []), **(transactions or {})},
        fence=fence,
        deleted=deleted,
    )
    if lake.is_rehearsal:
        return change.rehearse()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return change.attempt()
        except CommitFailedError as conflict:
            log.info("%s: another writer was first, attempt %d", name, attempt)
            if attempt == ATTEMPTS:
                raise TarnError(
                    f"other writers changed the table {ATTEMPTS} times while this write waited",
                    name,
                    "run it again when they are done",
                ) from conflict
            time.sleep(random.uniform(0.01, min(_LONGEST_PAUSE, 0.05 * 2**attempt)))
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class _Change:
    """One requested write. `attempt` reads the table anew each time."""

    lake: Lake
    name: str
    rows: Rows
    mode: Mode
    keys: tuple[str, ...]
    partition_by: tuple[str, ...]
    where: str | None
    evolve: bool
    not_null: tuple[str, ...]
    description: str | None
    comments: Mapping[str, str]
    properties: Mapping[str, str]
    transactions: Mapping[str, int]
    fence: Mapping[str, int | None] | None
    deleted: str | None

    @cached_property
    def _layout(self) -> Layout:
        return self.lake.policy.of(self.name).layout

    def attempt(self) -> Written:
        table = self.lake.table(self.name)
        self._check_fence(table)
        stream = self._stream(table)
        try:
            if self.mode in ("merge", "insert"):
                return self._merge(table, stream)
            if table is None or self.mode == "replace":
                return self._overwrite(table, stream.reader(), stream)
            return self._add(table, stream)
        except (DeltaError, OSError, pa.ArrowException) as error:
            # delta-rs wraps what the stream raised beyond recognition; the stream remembers.
            if stream.failure is not None:
                raise stream.failure from None
            if (version := self._trace(self.lake.table(self.name))) is not None:
                # The commit was made, and only what comes after it was not, as a checkpoint.
                log.warning("%s: version %d is committed, but: %s", self.name, version, error)
                return Written(version, stream.count)
            if isinstance(error, CommitFailedError):
                raise
            if table is None and "already exists" in str(error):
                raise CommitFailedError(str(error)) from error
            told = disk_failure(error, self.name)
            raise told or TarnError(f"cannot write: {error}", self.name) from error

    def _check_fence(self, table: DeltaTable | None) -> None:
        """What commits after this, delta-rs itself notices: it has the same applications."""
        for application, believed in (self.fence or {}).items():
            found = table.transaction_version(application) if table else None
            if found != believed:
                raise OvertakenError(
                    f"another process has written {application}: it is at {found}, not {believed}",
                    self.name,
                    "nothing was written",
                )

    def rehearse(self) -> Written:
        """Read and check the rows to the end, as if they were written. The version is the last."""
        table = self.lake.table(self.name)
        stream = self._stream(table)
        if self.mode in ("merge", "insert"):
            self._check_keys(stream.reader().read_all())
        for _ in stream.reader():
            pass
        return Written(table.version() if table else -1, stream.count)

    def _stream(self, table: DeltaTable | None) -> "_Stream":
        reader = self.rows.to_reader() if isinstance(self.rows, pa.Table) else self.rows()
        schema = deltable(reader.schema, self.name)
        mark = [field for field in schema if field.name == self.deleted]
        if table is not None and self.mode != "replace":
            existing = pa.schema(table.schema().to_arrow())
            stored = pa.schema([field for field in schema if field not in mark])
            schema = fit(stored, existing, self.name, evolve=self.evolve)
            schema = pa.schema([*schema, *mark])
        # A constant text column stays dictionary-encoded on its way: half the memory.
        kinds = {f.name: f.type for f in reader.schema if f.type in _ENCODED and not self.keys}
        fields = [self._described(f.with_type(kinds.get(f.name, f.type))) for f in schema]
        return _Stream(reader, pa.schema(fields), self.name, self.not_null)

    def _described(self, field: pa.Field) -> pa.Field:
        comment = self.comments.get(field.name)
        field = field.with_nullable(field.name not in self.not_null)
        return field.with_metadata({"comment": comment} if comment else None)

    def _overwrite(
        self, table: DeltaTable | None, rows: "pa.RecordBatchReader | pa.Table", stream: "_Stream"
    ) -> Written:
        options = self._common(pinned=True)
        partitions = list(self.partition_by) or None
        if table is None:
            write_deltalake(
                self.lake.uri(self.name),
                rows,
                mode="error",
                partition_by=partitions,
                description=self.description,
                configuration={
                    **CONFIGURATION,
                    "delta.targetFileSize": str(self._layout.target_file_bytes),
                },
                **options,
            )
        else:
            write_deltalake(
                table,
                rows,
                mode="overwrite",
                schema_mode="overwrite",
                partition_by=partitions,
                **options,
            )
        return Written(self._version(table), stream.count)

    def _add(self, table: DeltaTable, stream: "_Stream") -> Written:
        if self.mode == "append" and self.fence is None and stream.is_empty():
            return Written(table.version(), 0)
        target: dict[str, Any] = {"mode": "append"}
        if self.mode == "replace_where":
            target = {"mode": "overwrite", "predicate": self.where}
        write_deltalake(table, stream.reader(), schema_mode="merge", **target, **self._common())
        return Written(self._version(table), stream.count)

    def _merge(self, table: DeltaTable | None, stream: "_Stream") -> Written:
        if table is None and self.deleted is None:
            return self._overwrite(None, stream.reader(), stream)
        source = stream.reader().read_all()
        self._check_keys(source)
        if table is None:
            return self._overwrite(None, self._unmarked(source), stream)
        updates = self.mode == "merge"
        merge = Merge(self.lake, table, source, self.keys, updates, self.deleted)
        plan = merge.plan()
        if plan.kind == "nothing":
            return Written(table.version(), stream.count)
        if plan.kind != "merge":
            self._carry_out(table, merge, plan)
        elif not in_time(self._merger(table, plan).execute, MERGE_SECONDS):
            # Should it end after all, its commit is refused: the version will be taken.
            log.warning("%s: the merge hangs, so the table is written anew", self.name)
            table = DeltaTable(
                table.table_uri, table.version(), storage_options=dict(self.lake.options)
            )
            self._carry_out(table, merge, merge.without_merging(plan))
        return Written(self._version(table), stream.count)

    def _merger(self, table: DeltaTable, plan: Plan) -> TableMerger:
        merger = table.merge(
            plan.rows,
            predicate=plan.same,
            source_alias="source",
            target_alias="target",
            merge_schema=self.evolve,
            # Streaming the source disables the pruning of target files: forty times slower.
            streamed_exec=False,
            writer_properties=self._layout.writer_properties(),
            commit_properties=self._commit_properties(pinned=True),
        )
        if self.deleted is None:
            return merger.when_matched_update_all().when_not_matched_insert_all()
        return (
            merger.when_matched_delete(predicate=f"source.{column(self.deleted)}")
            .when_matched_update_all(except_cols=[self.deleted])
            .when_not_matched_insert_all(except_cols=[self.deleted])
        )

    def _carry_out(self, table: DeltaTable, merge: Merge, plan: Plan) -> None:
        """Write what any plan but a merge says."""
        rows = self._unmarked(plan.rows)
        target: dict[str, Any] = {"mode": "append"}
        if plan.kind != "append":
            target = {"mode": "overwrite", "predicate": plan.region}
        if plan.kind == "rewrite":
            batches = chain(rows.to_batches(), merge.others(plan, rows.schema, ROW_GROUP_ROWS))
            rows = pa.RecordBatchReader.from_batches(rows.schema, batches)
        write_deltalake(table, rows, schema_mode="merge", **target, **self._common(pinned=True))

    def _unmarked(self, rows: pa.Table) -> pa.Table:
        """The rows to be kept, without the column that marks the others."""
        return kept(rows, self.deleted).drop_columns([self.deleted] if self.deleted else [])

    def _check_keys(self, source: pa.Table) -> None:
        """Delta merges insert null keys always and fail obscurely on repeated ones."""
        nulls = [key for key in self.keys if source[key].null_count]
        if not self.keys or nulls:
            raise TarnError(f"null in key column {', '.join(nulls)}", self.name)
        distinct = source.select(self.keys).group_by(list(self.keys)).aggregate([]).num_rows
        if distinct != source.num_rows:
            raise TarnError(
                f"{source.num_rows - distinct} rows repeat a key ({', '.join(self.keys)})",
                self.name,
                "deduplicate the rows by a total order before they are merged",
            )

    def _common(self, *, pinned: bool = False) -> dict[str, Any]:
        return {
            "storage_options": dict(self.lake.options),
            "writer_properties": self._layout.writer_properties(),
            "target_file_size": self._layout.target_file_bytes,
            "commit_properties": self._commit_properties(pinned=pinned),
        }

    def _commit_properties(self, *, pinned: bool) -> CommitProperties:
        """pinned: the commit fails if the table is not as it was read, whoever changed what."""
        marks = [Transaction(*each) for each in self.transactions.items()] or None
        return CommitProperties(
            custom_metadata=dict(self.properties),
            app_transactions=marks,
            max_commit_retries=0 if pinned else None,
        )

    def _version(self, table: DeltaTable | None) -> int:
        """The version this write made, whoever has written since."""
        version = self._trace(table or self.lake.table(self.name))
        assert version is not None, f"{self.name}: no trace of the commit just made"
        return version

    def _trace(self, table: DeltaTable | None) -> int | None:
        """The version this write made, if it did."""
        for entry in table.history(20) if table else ():
            if entry.get(WRITE_ID) == self.properties[WRITE_ID]:
                return int(entry["version"])
        return None


class _Stream:
    """Batches on their way into a table: cast, checked, counted, and their failure remembered."""

    def __init__(
        self, source: pa.RecordBatchReader, schema: pa.Schema, name: str, not_null: Sequence[str]
    ) -> None:
        self.source, self.schema, self.name, self.not_null = source, schema, name, not_null
        self.count = 0
        self.failure: BaseException | None = None
        self._batches: Iterator[pa.RecordBatch] = self._checked()

    def is_empty(self) -> bool:
        """Whether no row comes. Waits for the first."""
        first = next((batch for batch in self._batches if batch.num_rows), None)
        if first is not None:
            self._batches = chain([first], self._batches)
        return first is None

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self.schema, self._batches)

    def _checked(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.source:
                for name in self.not_null:
                    if batch.column(name).null_count:
                        raise TarnError(f"null in column {name}, declared not null", self.name)
                self.count += batch.num_rows
                yield cast_to(batch, self.schema, self.name)
        except BaseException as failure:
            self.failure = failure
            raise
