"""The command line: one thin verb per job. Engines are imported by the verb that needs them."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from rich import filesize
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tarn.cli_storage import maintain, storage
from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage import catalog, releases
from tarn.storage.duck import client
from tarn.storage.lake import Lake

if TYPE_CHECKING:
    from tarn.ingestion.engine import LoadResult
    from tarn.serving.site import Site

_CONSOLE = Console()
_FORMATS = ("box", "csv", "json", "markdown", "line")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Say more about what happens.")
@click.version_option(package_name="tarn")
def cli(verbose: bool) -> None:
    """A lakehouse in one repository: load, keep, transform and serve what is declared here."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s"
    )


@cli.command()
@click.argument("systems", nargs=-1)
def ingest(systems: Sequence[str]) -> None:
    """Load the source systems: those named, or all of ingestion/."""
    results = _ingest(systems)
    sys.exit(any(result.failed for result in results))


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--from-release", type=int, metavar="N", help="Read raw tables as release N has them."
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def build(arguments: Sequence[str], from_release: int | None) -> None:
    """Run dbt build; a green one publishes a release."""
    if from_release is not None:
        return _rebuild(from_release, arguments)
    command = [_beside("dbt"), "build", *arguments]
    sys.exit(subprocess.run(command, cwd=settings().project_dir).returncode)


@cli.command()
def docs() -> None:
    """Write the site: dashboards, documentation, lineage."""
    from tarn.serving.site import build_site

    click.echo(f"Written: {_shown(build_site().index)}")


@cli.command()
def run() -> None:
    """Ingest, build and document; then say where things stand."""
    from tarn.dbt.build import build
    from tarn.serving.site import build_site

    started = time.monotonic()
    loads = _ingest(())
    if not build(settings().project_dir, _CONSOLE):
        raise TarnError("the build is red, so readers still see the release before")
    site = build_site()
    _summary(loads, site, time.monotonic() - started)
    sys.exit(any(load.failed for load in loads))


@cli.command()
@click.argument("sql", required=False)
@click.option("-f", "--format", "layout", type=click.Choice(_FORMATS), default="box")
def query(sql: str | None, layout: str) -> NoReturn:
    """Run SQL on the current release, or open a prompt on it."""
    lake = _lake()
    program = _beside("duckdb")
    statements, keys = client(lake)
    # Making a secret answers `true`, which is no part of the query's result.
    prepared = (f".output {os.devnull}", "; ".join(statements), ".output")
    command = [program, "-readonly", "-bail", f"-{layout}"]
    command += [argument for text in prepared for argument in ("-cmd", text)]
    command += [str(catalog.ensure(lake)), *(["-c", sql] if sql else [])]
    sys.stdout.flush()
    os.execve(program, command, {**settings().variables, **keys})


@cli.group()
def release() -> None:
    """Which versions of all tables readers see."""


@release.command("list")
def list_releases() -> None:
    """Releases, newest first."""
    table = Table("release", "made at (UTC)", "tables", "rows", "made by", box=None)
    for index, one in enumerate(releases.releases(_lake())):
        rows = sum(pin.rows for pin in one.tables.values())
        name = f"{one.number}{' ← current' if index == 0 else ''}"
        table.add_row(name, one.made_at[:19], str(len(one.tables)), f"{rows:,}", _maker(one))
    _print(table)


@release.command()
@click.argument("number", type=int, required=False)
def show(number: int | None) -> None:
    """The tables of a release (default: the current one)."""
    one = _release(number)
    table = Table("table", "version", "rows", "columns", box=None)
    for name, pin in one.tables.items():
        table.add_row(name, str(pin.version), f"{pin.rows:,}", pin.schema)
    click.echo(f"Release {one.number}, made at {one.made_at} by {_maker(one)}")
    _print(table)


@release.command()
@click.argument("before", type=int)
@click.argument("after", type=int, required=False)
def diff(before: int, after: int | None) -> None:
    """Rows and columns that changed per table between two releases (default: the current one)."""
    old, new = _release(before), _release(after)
    table = Table("table", "version", "rows", "columns", box=None)
    for change in releases.diff(old, new):
        with _CONSOLE.status(f"comparing {change.name}"):
            table.add_row(change.name, *_difference(change))
    _print(table) if table.row_count else click.echo("Nothing changed.")


@release.command()
@click.argument("number", type=int, required=False)
def rollback(number: int | None) -> None:
    """Let readers see an earlier release again (default: the one before)."""
    lake = _lake()
    one = releases.rollback(lake, number)
    catalog.build(lake, one)
    click.echo(f"Release {one.number} shows the tables of release {one.made_by['rollback_to']}.")


@cli.group("table")
def tables() -> None:
    """Single tables of the lake."""


@tables.command("show")
@click.argument("name", metavar="SCHEMA.TABLE")
@click.option("--version", type=int, help="As it was then; default: the newest.")
@click.option("--commits", type=int, default=10, help="How much of its history; default: 10.")
def show_table(name: str, version: int | None, commits: int) -> None:
    """A table's columns, files, and who made each version from what."""
    from tarn.storage.tables import describe

    one = describe(_lake(), name, version, commits)
    parts = f", partitioned by {', '.join(one.partition_by)}" if one.partition_by else ""
    size = filesize.decimal(one.bytes)
    click.echo(
        f"{one.name}, version {one.version}: {one.rows:,} rows, {size} in {one.files} files{parts}"
    )
    if one.text:
        _say(f"{one.text.strip()}\n")
    columns = Table("column", "type", "description", box=None)
    for column in one.columns:
        columns.add_row(column.name, column.type, escape(" ".join(column.description.split())))
    _print(columns)
    history = Table("version", "made at (UTC)", "release", "did", "rows", "by", box=None)
    for commit in one.history:
        history.add_row(
            str(commit.version),
            f"{commit.at:%Y-%m-%d %H:%M:%S}",
            str(commit.release or ""),
            commit.operation,
            "" if commit.rows_written is None else f"{commit.rows_written:,}",
            ", ".join(f"{key} {value}" for key, value in commit.made_by.items()),
        )
        if commit.reads:
            history.add_row("", "", "", "", "", f"from {', '.join(commit.reads)}")
    click.echo()
    _print(history)


cli.add_command(maintain)
cli.add_command(storage)


def main() -> None:
    """Run the command line; a failure a user can mend is one message and exit code 1."""
    try:
        cli()
    except TarnError as error:
        click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True)
        sys.exit(1)


def _lake() -> Lake:
    return Lake.open(settings())


def _release(number: int | None) -> releases.Release:
    found = releases.current(_lake()) if number is None else releases.read(_lake(), number)
    if found is None:
        raise TarnError("there is no release yet", fix="a green dbt build publishes one")
    return found


def _rebuild(number: int, arguments: Sequence[str]) -> None:
    """Build from a release's raw tables, and say what came out otherwise than then."""
    from tarn.dbt.build import rebuild

    differ = rebuild(settings().project_dir, number, arguments)
    if differ is None:
        sys.exit(1)
    same = f"Every table has the rows it has in release {number}, by content hash."
    _say(f"Other rows than in release {number}: {', '.join(differ)}." if differ else same)


def _difference(change: releases.Difference) -> tuple[str, str, str]:
    """The versions, rows and columns of a table in two releases, in words."""
    from tarn.storage.contents import changes

    old, new = change.before, change.after
    versions = f"{old.version if old else '-'} → {new.version if new else '-'}"
    if old is None or new is None:
        rows = f"+{new.rows:,}" if new else f"-{old.rows if old else 0:,}"
        return versions, rows, "new table" if new else "table gone"
    found = changes(_lake(), change.name, old, new)
    rows = f"+{found.rows_added:,} -{found.rows_removed:,}"
    told = [f"+{name}" for name in found.columns_added]
    told += [f"-{name}" for name in found.columns_removed]
    told += [f"{name}: other type" for name in found.columns_retyped]
    if found.columns_changed:
        told.append(f"other values in {', '.join(found.columns_changed)}")
    return versions, rows if found else "the same rows", ", ".join(told)


def _maker(one: releases.Release) -> str:
    return ", ".join(f"{key} {value}" for key, value in one.made_by.items())


def _print(table: Table) -> None:
    Console(width=_CONSOLE.width if _CONSOLE.is_terminal else 200).print(table)


def _ingest(systems: Sequence[str]) -> "list[LoadResult]":
    """Load systems, and end with what came in and what went wrong."""
    from tarn.ingestion.engine import ingest

    loads = ingest(systems, _CONSOLE)
    rows = sum(load.rows.accepted for load in loads)
    moved = f"{rows:,} rows came in" if rows else "nothing new"
    seconds = max((load.seconds for load in loads), default=0)
    _say(f"Ingested {len(loads)} systems in {seconds:.0f} s: {moved}.")
    for table in (table for load in loads for table in load.tables if table.error):
        click.echo(click.style("failed: ", fg="red", bold=True) + str(table.error), err=True)
    return loads


def _summary(loads: "Sequence[LoadResult]", site: "Site", seconds: float) -> None:
    """Rows in, tables out, the release, where to look, what to try next."""
    current = _release(None)
    rows = sum(load.rows.accepted for load in loads)
    held = sum(pin.rows for pin in current.tables.values())
    lake = settings().lake
    ours = Path(shutil.which("tarn") or "").parent == Path(_beside("tarn")).parent
    shell = "" if ours else f"{_shown(Path(_beside('tarn')).parent)}/"
    _say(
        f"""
Done in {seconds:.0f} s.
  Rows in    {rows:,} from {len(loads)} systems
  Tables     {len(current.tables)} with {held:,} rows in {_shown(lake)}
  Release    {current.number}
  Look at    {_shown(site.index)}
             {_shown(catalog.path(_lake()))} (any DuckDB client)

Next:
  {shell}tarn query                 SQL on this release
  {shell}tarn release show          its tables
  {shell}dbt build --select marts   plain dbt, on what is loaded"""
    )


def _say(text: str) -> None:
    _CONSOLE.print(text, highlight=False, markup=False, soft_wrap=True)


def _shown(path: Path | str) -> str:
    """A path as seen from the current folder."""
    return str(path) if "://" in str(path) else os.path.relpath(path)


def _beside(program: str) -> str:
    """A program that was installed with Tarn."""
    return str(Path(sys.executable).with_name(program))
