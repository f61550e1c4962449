"""Verbs that load source systems, now or when they are due, and tell where they stand."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from threading import Event
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from tarn.cli.console import CONSOLE, lake, print_table, say
from tarn.errors import TarnError
from tarn.settings import program, settings
from tarn.storage.loads import TableStatus, last_tries, span

if TYPE_CHECKING:
    from tarn.ingestion.declarations import Declared
    from tarn.ingestion.engine import LoadResult
    from tarn.ingestion.ledger import TableLoad
    from tarn.ingestion.options import Options
    from tarn.ingestion.schedule import Outcome, Work
    from tarn.storage.streams import PartitionState, StreamStatus

_STYLES = {"failed": "bold red", "late": "yellow", "never": "yellow", "ok": "green"}
_LAST_LINES = 15


@click.command()
@click.argument("systems", nargs=-1)
@click.option("--table", "tables", multiple=True, metavar="T", help="Only table or system.table.")
@click.option(
    "--backfill", metavar="FROM..TO", help="Load a span of the cursor again: 2017-03..2017-05."
)
@click.option("--full-refresh", is_flag=True, help="Load all again and replace; types may change.")
@click.option("--dry-run", is_flag=True, help="Say what would be loaded; write nothing.")
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="At most N rows a table, for a first try."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a table on standard output.")
def ingest(
    systems: Sequence[str],
    tables: Sequence[str],
    backfill: str | None,
    full_refresh: bool,
    dry_run: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Load the source systems: those named, or all of ingestion/."""
    from tarn.ingestion.options import Options, Span

    span = Span.read(backfill) if backfill else None
    options = Options(tuple(tables), span, full_refresh, dry_run, limit)
    loads = load(systems, options, as_json)
    sys.exit(any(each.failed for each in loads))


def load(
    systems: Sequence[str], options: "Options | None" = None, as_json: bool = False
) -> "list[LoadResult]":
    """Load systems, and end with what came in and what went wrong."""
    from tarn.ingestion.engine import ingest
    from tarn.ingestion.options import EVERYTHING

    options = options or EVERYTHING
    loads = ingest(systems, Console(quiet=True) if as_json else CONSOLE, options)
    tables = [table for each in loads for table in each.tables]
    if as_json:
        for table in tables:
            click.echo(json.dumps(_plain(table)))
        return loads
    if options.dry_run:
        for table in tables:
            _tell_rehearsed(table)
    rows = sum(each.rows.accepted for each in loads)
    came = "would come in; nothing was written" if options.dry_run else "came in"
    moved = f"{rows:,} rows {came}" if rows or options.dry_run else "nothing new"
    seconds = max((each.seconds for each in loads), default=0)
    systems = "1 system" if len(loads) == 1 else f"{len(loads)} systems"
    say(f"Ingested {systems} in {seconds:.0f} s: {moved}.")
    for table in (table for table in tables if table.error):
        click.echo(click.style("failed: ", fg="red", bold=True) + str(table.error), err=True)
    return loads


def _tell_rehearsed(table: "TableLoad") -> None:
    """What a load would come to: rows, changes of the source, columns."""
    if table.error:
        return
    rows = table.counts
    say(
        f"\n{table.system}.{table.table}: {rows.read:,} read, {rows.accepted:,} accepted, "
        f"{rows.quarantined:,} quarantined, {rows.deduplicated:,} deduplicated"
    )
    for note in table.notes:
        say(f"  {note}")
    if table.columns:
        say("  " + ", ".join(f"{name} {kind}" for name, kind in table.columns.items()))


def _plain(table: "TableLoad") -> dict[str, object]:
    """In JSON's types."""
    return {
        "system": table.system,
        "table": table.table,
        "status": table.status,
        **asdict(table.counts),
        "seconds": round(table.seconds, 3),
        "notes": list(table.notes),
        "error": table.error,
    }


@click.command()
@click.argument("systems", nargs=-1)
@click.option("--check", is_flag=True, help="Exit with 1 if a table is late, failed or missing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a table.")
def status(systems: Sequence[str], check: bool, as_json: bool) -> None:
    """Where every table stands: late, failed, rows, drift, quarantine. The worst first.

    Then how streams keep up; of one system for each partition.
    """
    found = standing(systems)
    if as_json:
        for each in found:
            click.echo(json.dumps(asdict(each), default=str))
    else:
        _show(found)
        _show_streams(found, by_partition=len({each.system for each in found}) == 1)
    sys.exit(check and any(each.state != "ok" for each in found))


def standing(systems: Sequence[str] = ()) -> list[TableStatus]:
    """Where the tables of systems stand now: those named, or all; none in a project without."""
    from tarn.ingestion.declarations import FOLDER
    from tarn.ingestion.status import status
    from tarn.storage.clock import now

    if not any((settings().project_dir / FOLDER).glob("*.yml")):
        return []
    return status(lake(), _declared(systems), now())


def _show(found: Sequence[TableStatus]) -> None:
    table = Table(
        "", "table", "last success (UTC)", "rows", "took", "drift", "quarantine", box=None
    )
    for each in found:
        history = each.history
        state = f"late by {span(each.late_seconds)}" if each.state == "late" else each.state
        succeeded = history.succeeded_at if history else None
        table.add_row(
            f"[{_STYLES[each.state]}]{state}[/]",
            f"{each.system}.{each.table}",
            f"{succeeded:%Y-%m-%d %H:%M}" if succeeded else "-",
            f"{history.rows:,}" if history and succeeded else "-",
            span(history.seconds) if history and succeeded else "-",
            str(each.drift or ""),
            f"{each.quarantined:,}" if each.quarantined else "",
        )
    print_table(table)
    counts = {state: sum(each.state == state for each in found) for state in _STYLES}
    say(", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no tables")
    for each in found:
        if each.error:
            say(f"{each.system}.{each.table}: {_brief(each.error)}")


def _show_streams(found: Sequence[TableStatus], by_partition: bool) -> None:
    """How far streams are behind, and how fast they read; of one system for each partition."""
    table = Table("stream", "lag", "messages/s", "last event (UTC)", "last commit (UTC)", box=None)
    for name, stream in ((f"{each.system}.{each.table}", each.stream) for each in found):
        if stream is None:
            continue
        table.add_row(name if stream.is_running else f"{name} (stopped)", *_progress(stream))
        for partition in stream.partitions if by_partition else ():
            table.add_row(f"  {partition.partition}", *_progress(partition))
    if table.row_count:
        say("")
        print_table(table)


def _progress(of: "StreamStatus | PartitionState") -> list[str]:
    times = (of.last_event_at, of.last_commit_at)
    return [
        "-" if of.lag is None else f"{of.lag:,}",
        f"{of.rate:,.1f}",
        *(f"{time:%Y-%m-%d %H:%M:%S}" if time else "-" for time in times),
    ]


def _brief(error: str | None) -> str:
    """The first line of a message."""
    first = (error or "").partition("\n")[0]
    return first if len(first) <= 160 else f"{first[:159]}…"


@click.group(invoke_without_command=True)
@click.option("--once", is_flag=True, help="Load what is due now, and end: for cron.")
@click.option("--no-build", is_flag=True, help="Only load; do not build and publish after.")
@click.pass_context
def schedule(context: click.Context, once: bool, no_build: bool) -> None:
    """Load each system when its schedule says so, until Ctrl-C; then build what models make of it.

    What was missed while nothing ran is made up for once.
    """
    if context.invoked_subcommand:
        return
    from tarn.ingestion.schedule import due, run, run_once
    from tarn.ingestion.timetable import timetables
    from tarn.storage.clock import now

    systems = timetables(_declared())
    if not systems:
        raise TarnError("no system has a schedule", "ingestion", 'add schedule: "0 2 * * *"')
    missed, work = due(lake(), systems, now()), _work(build=not no_build)
    if once:
        return run_once(missed, work)
    _tell(f"{len(systems)} systems scheduled" + (f", due now: {', '.join(missed)}" * bool(missed)))
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run(systems, missed, work, stop)
    _stop_children()
    _tell("stopped")


@schedule.command("list")
def list_schedules() -> None:
    """Each system's schedule, its last load and its next."""
    from tarn.ingestion.timetable import Timetable
    from tarn.storage.clock import now

    tried = last_tries(lake())
    table = Table("system", "schedule", "time zone", "last load (UTC)", "next (UTC)", box=None)
    for each in _declared():
        timetable, last = Timetable.of(each), tried.get(each.name)
        table.add_row(
            each.name,
            timetable.cron if timetable else "-",
            timetable.zone if timetable else "",
            f"{last:%Y-%m-%d %H:%M}" if last else "never",
            f"{timetable.after(now()):%Y-%m-%d %H:%M}" if timetable else "-",
        )
    print_table(table)


@schedule.command()
def crontab() -> None:
    """Lines for crontab that do the same."""
    from tarn.ingestion.exports import crontab_text
    from tarn.ingestion.timetable import timetables

    here = settings()
    click.echo(crontab_text(timetables(_declared()), here.project_dir, program("tarn")), nl=False)


@schedule.command()
def github() -> None:
    """A workflow for GitHub Actions that does the same."""
    from tarn.ingestion.exports import github_text

    click.echo(github_text(_declared()), nl=False)


_CHILDREN: set["subprocess.Popen[str]"] = set()


def _work(build: bool) -> "Work":
    from tarn.ingestion.schedule import Work

    return Work(_load_apart, _build_apart if build else None, _tell)


def _load_apart(system: str) -> "Outcome":
    """In a process of its own: whatever befalls it, the scheduler goes on."""
    from tarn.ingestion.schedule import Outcome
    from tarn.ingestion.workspace import is_taken

    if is_taken(settings().work_dir, system):
        return Outcome("is being loaded by another process, left to it", False)
    _tell(f"{system}: started")
    code, said, errors = _run("ingest", system, "--json")
    tables = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    rows = sum(table["accepted"] for table in tables)
    failed = [f"{table['table']}: {table['error']}" for table in tables if table["error"]]
    if code < 0:
        return Outcome("stopped in its middle; the next load repeats it", False)
    if code and not failed:
        failed = [errors.strip() or f"ended with {code}"]
    told = f"{rows:,} rows came in" if rows else "nothing new"
    if failed:
        told = f"failed: {_brief(failed[0])}" + (
            f" (and {len(failed) - 1} more)" * (len(failed) > 1)
        )
    return Outcome(told, rows > 0)


def _build_apart() -> str:
    """Build, and write the site if it is green; how that went."""
    code, said, errors = _run("build")
    if code:
        tail = "\n".join((said + errors).strip().splitlines()[-_LAST_LINES:])
        return f"red, readers still see the release before\n{tail}"
    code, _, errors = _run("docs")
    return "green" if not code else f"green, but no site: {_brief(errors.strip())}"


def _run(*arguments: str) -> tuple[int, str, str]:
    """Exit code and output of one of our own verbs."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [program("tarn"), *arguments],
        cwd=settings().project_dir,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    ) as process:
        _CHILDREN.add(process)
        try:
            said, errors = process.communicate()
        finally:
            _CHILDREN.discard(process)
    return process.returncode, said, errors


def _stop_children() -> None:
    """A load that is stopped in its middle is repeated by the next."""
    for process in list(_CHILDREN):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def _tell(text: str) -> None:
    """An event, with its time."""
    from tarn.storage.clock import now

    say(f"{now():%Y-%m-%d %H:%M:%S} {text}")


def _declared(systems: Sequence[str] = ()) -> "list[Declared]":
    from tarn.ingestion.declarations import FOLDER, declared

    return declared(settings().project_dir / FOLDER, systems)
