"""`tarn storage report`: what each table takes, what it costs, and what would make it smaller.

Predictions are measured on a sample: rows of the table are written in the layout proposed and
thrown away. Nothing the report reads counts as a read of the table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from deltalake import DeltaTable

from tarn.errors import TarnError
from tarn.storage import catalog, releases
from tarn.storage.datafiles import DataFile, Reader, Rows, data_files, why_untouchable
from tarn.storage.lake import Lake
from tarn.storage.policy import TablePolicy, Tier
from tarn.storage.releases import Release
from tarn.storage.upkeep import vacuum
from tarn.storage.upkeep.maintain import FAILURES, pinned_versions, publish_rewritten
from tarn.storage.upkeep.rewrite import Group, Outcome, measure, repartition, rewrite
from tarn.storage.upkeep.tiers import Kind, Work, is_cold, work
from tarn.storage.upkeep.vacuum import Garbage
from tarn.storage.writer import READS, UPKEEP
from tarn.strict_yaml import nearest

MONTH = timedelta(days=30)
_HISTORY = 100
"""Commits that are searched for reads, writes and sizes."""
_FOOTERS = 16
"""Files, the largest first, that the compression ratio is taken from."""
_SAMPLE_BYTES = 24 * 1024 * 1024
_SAMPLE_FILES = 64
_WORTH_RECOMPRESSING = 0.03
"""Part of its size that a table must lose for a rewrite by codec or row groups to be advised."""
_UNREAD = timedelta(days=90)
_WORTH_COOLING = 10_000_000
_WORTH_PARTITIONING = 2 * 1024**3

Action = Literal["compact", "cool", "recompress", "partition", "vacuum"]


@dataclass(frozen=True)
class Advice:
    """One thing to do about one table; sizes in bytes, before and (predicted) after."""

    table: str
    action: Action
    files: int
    size: int
    predicted: int
    why: str
    work: Work | None = None
    garbage: Garbage | None = None
    declare: str | None = None
    """What storage.yml must say first; without it `--apply` does the advice."""

    @property
    def saving(self) -> int:
        return self.size - self.predicted


@dataclass(frozen=True)
class Applied:
    """Advice and what came of it."""

    advice: Advice
    measured: int | None
    """Bytes after; None if it could not be done."""
    files: int = 0
    """Files after."""
    note: str | None = None


@dataclass(frozen=True)
class TableReport:
    """What one table takes. Sizes in bytes; None stands for unknown."""

    name: str
    tier: Tier
    size: int
    """Of the newest version."""
    held: int
    """Of other files in its folder: older versions that are kept, and garbage."""
    files: int
    rows: int
    ratio: float | None
    """Bytes of the values, encoded but not compressed, by bytes on disk."""
    last_read: datetime | None
    last_written: datetime | None
    growth: float | None
    """Bytes a month."""
    native: int
    """Of the hot copy."""
    cost: float
    """A month, in the currency of storage.yml."""
    note: str | None = None


@dataclass(frozen=True)
class StorageReport:
    """All tables, the largest first, and what to do."""

    tables: Sequence[TableReport]
    advice: Sequence[Advice]

    @property
    def cost(self) -> float:
        return sum(table.cost for table in self.tables)


def report(lake: Lake, names: Sequence[str] = (), now: datetime | None = None) -> StorageReport:
    """Look at the named tables, or all."""
    now = now or datetime.now(UTC)
    chosen = list(names) or lake.names()
    tables = {name: table for name in chosen if (table := _table(lake, name)) is not None}
    history = {name: table.history(_HISTORY) for name, table in tables.items()}
    reads = _reads(history.values())
    pinned = pinned_versions(lake, now)
    kept = list(releases.releases(lake))
    native = catalog.native_sizes(lake)
    reports, advice = [], []
    for name, table in tables.items():
        subject = _Subject(lake, name, table, history[name], pinned.get(name, set()), kept, now)
        one = subject.report(reads.get(name), native.get(name, 0))
        try:
            advice += subject.advice(one)
        except FAILURES as error:
            told = error.what if isinstance(error, TarnError) else str(error).splitlines()[0]
            one = replace(one, note=one.note or told)
        reports.append(one)
    reports.sort(key=lambda one: -(one.size + one.held))
    advice.sort(key=lambda one: (one.declare is not None, -one.saving))
    return StorageReport(reports, advice)


def apply(lake: Lake, advice: Iterable[Advice]) -> list[Applied]:
    """Do what is advised, publish the rewritten tables, and measure."""
    applied = [_applied(lake, each) for each in advice if each.declare is None]
    if any(each.advice.work or each.advice.action == "partition" for each in applied):
        publish_rewritten(lake)
    return applied


def _applied(lake: Lake, advice: Advice) -> Applied:
    try:
        outcome = _done(lake, advice)
    except FAILURES as error:
        return Applied(advice, None, note=str(error).splitlines()[0])
    if not outcome.files_before and outcome.overtaken:
        return Applied(advice, None, note="another writer replaced these files meanwhile")
    rest = advice.size - outcome.size_before
    return Applied(advice, rest + outcome.size_after, outcome.files_after)


def _done(lake: Lake, advice: Advice) -> Outcome:
    if advice.garbage is not None:
        vacuum.remove(lake, advice.table, advice.garbage)
        return Outcome(files_before=advice.files, size_before=advice.size)
    if advice.work is not None:
        return rewrite(lake, advice.table, advice.work.groups, advice.work.kind)
    policy = lake.policy.of(advice.table)
    return repartition(lake, advice.table, policy.partition_by, policy.layout)


def _table(lake: Lake, name: str) -> DeltaTable | None:
    try:
        return lake.table(name)
    except FAILURES:
        return None


@dataclass(frozen=True)
class _Subject:
    """A table under examination."""

    lake: Lake
    name: str
    table: DeltaTable
    history: Sequence[Mapping[str, Any]]
    pinned: set[int]
    releases: Sequence[Release]
    now: datetime

    @property
    def policy(self) -> TablePolicy:
        return self.lake.policy.of(self.name)

    @property
    def reader(self) -> Reader:
        return Reader.of(self.lake, self.name)

    def report(self, read: datetime | None, native: int) -> TableReport:
        files = data_files(self.table)
        size = sum(file.size for file in files)
        held = max(0, _stored(self.lake, self.name) - size)
        prices = self.lake.policy.prices.per_gb_month
        try:
            cold = sum(f.size for f in files if is_cold(f, self.policy, self.now, self.name))
            note = None
        except TarnError as error:
            cold, note = 0, error.what
        warm = size + held - cold
        cost = (cold * prices["cold"] + warm * prices["warm"] + native * prices["hot"]) / 1e9
        return TableReport(
            name=self.name,
            tier=self.policy.tier,
            size=size,
            held=held,
            files=len(files),
            rows=sum(file.rows or 0 for file in files),
            ratio=self._ratio(files),
            last_read=self._last_read(files, read),
            last_written=self._last_written(),
            growth=self._growth(size),
            native=native,
            cost=cost,
            note=note,
        )

    def advice(self, report: TableReport) -> list[Advice]:
        found = [self._vacuum()]
        if report.note is None and why_untouchable(self.table) is None:
            kinds: tuple[Kind, ...] = ("compact", "cool", "recompress")
            if self._is_to_be_partitioned():
                found.append(self._partition())
            else:
                works = work(self.table, self.reader, self.policy, self.now, kinds)
                found += [self._of_work(each) for each in works]
            found.append(self._suggestion(report))
        return [each for each in found if each is not None]

    def _of_work(self, each: Work) -> Advice | None:
        predicted = self._predict(each.groups)
        advice = Advice(
            self.name, each.kind, each.files, each.size, predicted, _why(each), work=each
        )
        if each.kind == "recompress" and advice.saving < _WORTH_RECOMPRESSING * each.size:
            return None
        return advice

    def _vacuum(self) -> Advice | None:
        grace = self.lake.policy.vacuum_after
        try:
            garbage = vacuum.of_table(self.lake, self.name, self.pinned, self.now, grace)
        except FAILURES:
            return None
        if not garbage.size:
            return None
        why = "no release needs them"
        count = len(garbage.files) + len(garbage.log)
        return Advice(self.name, "vacuum", count, garbage.size, 0, why, garbage=garbage)

    def _is_to_be_partitioned(self) -> bool:
        declared = list(self.policy.partition_by)
        return bool(declared) and not self.table.metadata().partition_columns

    def _partition(self) -> Advice:
        files = tuple(data_files(self.table))
        known = [field.name for field in self.table.schema().fields]
        for column in self.policy.partition_by:
            if column not in known:
                what = f"storage.yml: partition_by: no column {column!r}{nearest(column, known)}"
                raise TarnError(what, self.name)
        columns = ", ".join(self.policy.partition_by)
        group = Group(files, self.policy.layout)
        return Advice(
            self.name,
            "partition",
            len(files),
            group.size,
            self._predict([group], self.policy.partition_by),
            f"by {columns}: reads and merges of one {columns} skip the rest",
        )

    def _suggestion(self, report: TableReport) -> Advice | None:
        """What the policy does not say, but the figures do."""
        unread = report.last_read is not None and report.last_read < self.now - _UNREAD
        if unread and report.tier == "warm" and report.size >= _WORTH_COOLING:
            group = Group(tuple(data_files(self.table)), self.policy.cold.layout)
            why = f"not read for {(self.now - (report.last_read or self.now)).days} days"
            return replace(
                Advice(self.name, "cool", report.files, report.size, self._predict([group]), why),
                declare=f"tables: {{{self.name}: {{tier: cold}}}}",
            )
        partitioned = self.table.metadata().partition_columns or self.policy.partition_by
        if report.size >= _WORTH_PARTITIONING and not partitioned:
            why = "each merge and each replacement looks at all of it"
            return replace(
                Advice(self.name, "partition", report.files, report.size, report.size, why),
                declare=f"tables: {{{self.name}: {{partition_by: [a date column]}}}}",
            )
        return None

    def _predict(self, groups: Sequence[Group], partition_by: Sequence[str] = ()) -> int:
        """Bytes that the groups would come to, from samples of the largest and the middle one."""
        total = sum(group.size for group in groups)
        ordered = sorted(groups, key=lambda group: -group.size)
        chosen = {index: ordered[index] for index in (0, len(ordered) // 2, len(ordered) - 1)}
        before = after = 0
        for group in chosen.values():
            sample = self._sample(group, _SAMPLE_BYTES // len(chosen))
            before += sample.size
            after += measure(sample, group, partition_by)
        return round(total * after / before) if before else total

    def _sample(self, group: Group, budget: int) -> Rows:
        """Neighbouring rows from the middle of a group, of about so many compressed bytes."""
        files = group.files
        start = max(0, len(files) // 2 - _SAMPLE_FILES // 2)
        chosen: list[DataFile] = []
        for file in files[start : start + _SAMPLE_FILES]:
            if chosen and sum(each.size for each in chosen) + file.size > budget:
                break
            chosen.append(file)
        if len(chosen) == 1 and chosen[0].size > budget:
            return Rows.sampled(
                self.table, self.reader, chosen[0], group.layout.row_group_rows, budget
            )
        return Rows(self.table, self.reader, tuple(chosen))

    def _ratio(self, files: Sequence[DataFile]) -> float | None:
        largest = sorted(files, key=lambda file: -file.size)[:_FOOTERS]
        try:
            footers = [self.reader.footer(file) for file in largest]
        except FAILURES:
            return None
        compressed = sum(footer.compressed for footer in footers)
        return sum(footer.uncompressed for footer in footers) / compressed if compressed else None

    def _last_read(self, files: Sequence[DataFile], read: datetime | None) -> datetime | None:
        times = [time for file in files if (time := self.reader.last_read(file))]
        return max([*times, *([read] if read else [])], default=None)

    def _last_written(self) -> datetime | None:
        times = [_time(entry) for entry in self.history if UPKEEP not in entry]
        return max(times, default=None)

    def _growth(self, size: int) -> float | None:
        """From the size a month ago, or as long ago as is known; None below one day."""
        known = [(_time(e), int(e["version"])) for e in self.history]
        known += [
            (datetime.fromisoformat(release.made_at), pin.version)
            for release in self.releases
            if (pin := release.tables.get(self.name))
        ]
        old = sorted(each for each in known if self.now - each[0] >= timedelta(days=1))
        if not old:
            return None
        month_ago = [each for each in old if each[0] <= self.now - MONTH]
        time, version = month_ago[-1] if month_ago else old[0]
        try:
            table = self.lake.table(self.name, version)
        except FAILURES:
            return None
        before = sum(file.size for file in data_files(table)) if table else 0
        return (size - before) / ((self.now - time) / MONTH)


def _why(each: Work) -> str:
    layouts = {str(group.layout): None for group in each.groups}
    if each.kind == "compact":
        return "small files"
    what = "cold" if each.kind == "cool" else "declared"
    return f"{what}: {'; '.join(layouts)}"


def _reads(histories: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, datetime]:
    """By table, when a build last read it."""
    found: dict[str, datetime] = {}
    for history in histories:
        for entry in history:
            for read in str(entry.get(READS) or "").split(","):
                name = read.strip().partition("@")[0]
                if name:
                    found[name] = max(found.get(name, _time(entry)), _time(entry))
    return found


def _time(entry: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(entry["timestamp"] / 1000, UTC)


def _stored(lake: Lake, name: str) -> int:
    """Bytes of all data files in a table's folder."""
    folder = name.replace(".", "/")
    return sum(
        entry["size"]
        for entry in lake.files(folder)
        if entry["path"].endswith(".parquet") and "/_delta_log/" not in entry["path"]
    )
