"""The verbs that keep storage small, and how they tell what they did."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich import filesize
from rich.markup import escape
from rich.table import Table

from tarn.cli import console
from tarn.cli.console import CONSOLE, print_table, say
from tarn.storage.lake import Lake

if TYPE_CHECKING:
    from tarn.storage.upkeep.maintain import TableUpkeep, Upkeep
    from tarn.storage.upkeep.report import Advice, Applied, StorageReport, TableReport
    from tarn.storage.upkeep.rewrite import Outcome

_PAST = {
    "compact": "compacted",
    "cool": "cooled",
    "recompress": "recompressed",
    "partition": "partitioned",
    "vacuum": "vacuumed",
}


@click.command()
@click.argument("tables", nargs=-1, metavar="[SCHEMA.TABLE]...")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be done.")
def maintain(tables: Sequence[str], dry_run: bool) -> None:
    """Compact, cool, checkpoint and vacuum; forget old releases. As storage.yml says."""
    from tarn.storage.upkeep.maintain import maintain

    lake = console.lake()
    upkeep = maintain(lake, tables, dry_run=dry_run, watcher=_Watcher(dry_run))
    _tell_upkeep(upkeep, lake, dry_run)
    sys.exit(any(table.failed for table in upkeep.tables))


@click.group()
def storage() -> None:
    """What the lake takes, what that costs, and how to make it less."""


@storage.command()
@click.argument("tables", nargs=-1, metavar="[SCHEMA.TABLE]...")
@click.option("--apply", "do_it", is_flag=True, help="Do what is advised, and measure.")
def report(tables: Sequence[str], do_it: bool) -> None:
    """Size, files, age, growth and cost of each table, and what would make it smaller."""
    from tarn.storage.upkeep.report import apply, report

    lake = console.lake()
    with CONSOLE.status("measuring"):
        found = report(lake, tables)
    currency = lake.policy.prices.currency
    _tell_tables(found, currency)
    _tell_advice(found.advice, lake)
    doable = [advice for advice in found.advice if advice.declare is None]
    if not do_it:
        if doable:
            say("\ntarn storage report --apply does what is advised and measures the saving.")
        return
    if doable:
        with CONSOLE.status("applying"):
            applied = apply(lake, doable)
        _tell_applied(applied, lake)
        sys.exit(any(each.measured is None for each in applied))


class _Watcher:
    """A line on the terminal while a table is looked at; one that stays when it was changed."""

    def __init__(self, dry_run: bool) -> None:
        self._dry_run = dry_run
        self._status = CONSOLE.status("")

    def begin(self, name: str) -> None:
        self._status.update(name)
        self._status.start()

    def end(self, table: "TableUpkeep") -> None:
        self._status.stop()
        for kind, outcome in table.done.items():
            say(f"{table.name}: {self._told(kind, outcome)}")

    def _told(self, kind: str, outcome: "Outcome") -> str:
        before = f"{_files(outcome.files_before)} ({_size(outcome.size_before)})"
        if self._dry_run:
            return f"{before} would be {_PAST[kind]}"
        after = f"{_files(outcome.files_after)} ({_size(outcome.size_after)})"
        left = f"; {_files(outcome.overtaken)} left to another writer" * bool(outcome.overtaken)
        return f"{before} {_PAST[kind]} to {after}{left}"


def _tell_upkeep(upkeep: "Upkeep", lake: Lake, dry_run: bool) -> None:
    for table in upkeep.tables:
        if table.note:
            colour = "red" if table.failed else "yellow"
            click.echo(f"{click.style(table.name, fg=colour)}: {table.note}", err=table.failed)
    would = "would be " if dry_run else ""
    count = len(upkeep.tables)
    lines = [f"{count} {'table' if count == 1 else 'tables'} {'looked at' if dry_run else 'kept'}."]
    if upkeep.files or upkeep.log_entries:
        what = f"{_files(upkeep.files)} and {upkeep.log_entries:,} log entries"
        lines.append(
            f"  Removed    {_size(upkeep.size)}: {what} {would}gone; no release needs them"
        )
    if checkpoints := sum(table.checkpoint for table in upkeep.tables):
        tables = "table" if checkpoints == 1 else "tables"
        lines.append(f"  Checkpoint {checkpoints} {tables} {'would get' if dry_run else 'got'} one")
    if upkeep.expired:
        numbers = _ranges(upkeep.expired)
        lines.append(
            f"  Releases   {numbers} {would}forgotten;"
            f" their files go after {_span(lake.policy.vacuum_after)}"
        )
    if upkeep.release:
        lines.append(f"  Release    {upkeep.release.number} shows readers the new files")
    if len(lines) == 1 and not any(table.done for table in upkeep.tables):
        lines[0] += " Nothing to do."
    say("\n".join(lines))


def _tell_tables(found: "StorageReport", currency: str) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("table", "tier"):
        table.add_column(name, no_wrap=True)
    for name in (
        "size",
        "old",
        "files",
        "ratio",
        "read",
        "written",
        "a month",
        f"{currency}/month",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for one in found.tables:
        table.add_row(*_row(one, now))
    held = sum(one.held for one in found.tables)
    total = ["", _size(sum(one.size for one in found.tables)), _size(held) if held else "-"]
    files = f"{sum(t.files for t in found.tables):,}"
    table.add_section()
    table.add_row(f"all {len(found.tables)}", *total, files, "", "", "", "", _money(found.cost))
    print_table(table, at_least=130)
    for one in found.tables:
        if one.note:
            click.echo(f"{click.style(one.name, fg='yellow')}: {one.note}")


def _row(one: "TableReport", now: datetime) -> list[str]:
    growth = "unknown" if one.growth is None else f"{'-+'[one.growth >= 0]}{_size(abs(one.growth))}"
    return [
        escape(one.name),
        one.tier,
        _size(one.size),
        _size(one.held) if one.held else "-",
        f"{one.files:,}",
        "unknown" if one.ratio is None else f"{one.ratio:.1f}",
        _ago(one.last_read, now),
        _ago(one.last_written, now),
        growth,
        _money(one.cost),
    ]


def _tell_advice(advice: "Sequence[Advice]", lake: Lake) -> None:
    if not advice:
        say("\nNothing to advise: every table is kept as storage.yml says.")
        return
    say("\nAdvice")
    table = Table(box=None, pad_edge=False)
    for name in ("do", "table", "files"):
        table.add_column(name, no_wrap=True, justify="right" if name == "files" else "left")
    for name in ("now", "then", "saves", f"{lake.policy.prices.currency}/month"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("because")
    for each in advice:
        because = each.why + (f"; declare {each.declare} first" if each.declare else "")
        table.add_row(
            each.action,
            escape(each.table),
            f"{each.files:,}",
            _size(each.size),
            _size(each.predicted),
            _change(each.saving),
            _money(_price(lake, each.table, each.saving)),
            escape(because),
        )
    print_table(table, at_least=130)


def _tell_applied(applied: "Sequence[Applied]", lake: Lake) -> None:
    say("\nApplied")
    table = Table(box=None, pad_edge=False)
    for name in ("did", "table"):
        table.add_column(name, no_wrap=True)
    currency = lake.policy.prices.currency
    for name in ("files", "predicted", "measured", "saved", f"{currency}/month"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("")
    for each in applied:
        advice, measured = each.advice, each.measured
        saved = 0 if measured is None else advice.size - measured
        table.add_row(
            _PAST[advice.action],
            escape(advice.table),
            f"{advice.files:,} → {each.files:,}" if measured is not None else "",
            _size(advice.predicted),
            "-" if measured is None else _size(measured),
            _change(saved),
            _money(_price(lake, advice.table, saved)),
            escape(each.note or ""),
        )
    print_table(table, at_least=130)
    if any(each.advice.action != "vacuum" for each in applied):
        say(
            f"\nFiles replaced just now stay while a kept release reads them, and for"
            f" {_span(lake.policy.vacuum_after)}; then tarn maintain removes them."
        )


def _price(lake: Lake, table: str, size: int) -> float:
    """A month's cost of so many bytes in the lake; the copy of a hot table is not meant."""
    tier = lake.policy.of(table).tier
    return size / 1e9 * lake.policy.prices.per_gb_month["cold" if tier == "cold" else "warm"]


def _size(size: float) -> str:
    return filesize.decimal(round(size))


def _change(saving: int) -> str:
    return _size(saving) if saving >= 0 else f"-{_size(-saving)}"


def _files(count: int) -> str:
    return f"{count:,} {'file' if count == 1 else 'files'}"


def _money(amount: float) -> str:
    """To the cent; no more digits are worth reading."""
    return f"{amount:.2f}" if abs(amount) >= 0.005 or amount == 0 else "< 0.01"


def _ago(time: datetime | None, now: datetime) -> str:
    return "unknown" if time is None else f"{_span(max(now - time, timedelta(0)))} ago"


def _span(span: timedelta) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (count := int(span.total_seconds() // length)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "a moment"


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as `1 to 3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
