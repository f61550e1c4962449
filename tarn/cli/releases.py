"""Verbs that tell of releases and tables, and move what readers see."""

import click
from rich import filesize
from rich.markup import escape
from rich.table import Table

from tarn.cli.console import CONSOLE, lake, print_table, say
from tarn.errors import TarnError
from tarn.storage import catalog, releases


@click.group()
def release() -> None:
    """Which versions of all tables readers see."""


@release.command("list")
def list_releases() -> None:
    """Releases, newest first."""
    table = Table("release", "made at (UTC)", "tables", "rows", "made by", box=None)
    for index, one in enumerate(releases.releases(lake())):
        rows = sum(pin.rows for pin in one.tables.values())
        name = f"{one.number}{' ← current' if index == 0 else ''}"
        table.add_row(name, one.made_at[:19], str(len(one.tables)), f"{rows:,}", _maker(one))
    print_table(table)


@release.command()
@click.argument("number", type=int, required=False)
def show(number: int | None) -> None:
    """The tables of a release (default: the current one)."""
    one = find(number)
    table = Table("table", "version", "rows", "columns", box=None)
    for name, pin in one.tables.items():
        table.add_row(name, str(pin.version), f"{pin.rows:,}", pin.schema)
    click.echo(f"Release {one.number}, made at {one.made_at} by {_maker(one)}")
    print_table(table)


@release.command()
@click.argument("before", type=int)
@click.argument("after", type=int, required=False)
def diff(before: int, after: int | None) -> None:
    """Rows and columns that changed per table between two releases (default: the current one)."""
    old, new = find(before), find(after)
    table = Table("table", "version", "rows", "columns", box=None)
    for change in releases.diff(old, new):
        with CONSOLE.status(f"comparing {change.name}"):
            table.add_row(change.name, *_difference(change))
    print_table(table) if table.row_count else click.echo("Nothing changed.")


@release.command()
@click.argument("number", type=int, required=False)
def rollback(number: int | None) -> None:
    """Let readers see an earlier release again (default: the one before)."""
    here = lake()
    one = releases.rollback(here, number)
    catalog.build(here, one)
    click.echo(f"Release {one.number} shows the tables of release {one.made_by['rollback_to']}.")


@click.group("table")
def tables() -> None:
    """Single tables of the lake."""


@tables.command("show")
@click.argument("name", metavar="SCHEMA.TABLE")
@click.option("--version", type=int, help="As it was then; default: the newest.")
@click.option("--commits", type=int, default=10, help="How much of its history; default: 10.")
def show_table(name: str, version: int | None, commits: int) -> None:
    """A table's columns, files, and who made each version from what."""
    from tarn.storage.tables import describe

    one = describe(lake(), name, version, commits)
    parts = f", partitioned by {', '.join(one.partition_by)}" if one.partition_by else ""
    size = filesize.decimal(one.bytes)
    click.echo(
        f"{one.name}, version {one.version}: {one.rows:,} rows, {size} in {one.files} files{parts}"
    )
    if one.text:
        say(f"{one.text.strip()}\n")
    columns = Table("column", "type", "description", box=None)
    for column in one.columns:
        columns.add_row(column.name, column.type, escape(" ".join(column.description.split())))
    print_table(columns)
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
    print_table(history)


def find(number: int | None) -> releases.Release:
    """A release by its number, or the current one."""
    found = releases.current(lake()) if number is None else releases.read(lake(), number)
    if found is None:
        raise TarnError("there is no release yet", fix="a green dbt build publishes one")
    return found


def _difference(change: releases.Difference) -> tuple[str, str, str]:
    """The versions, rows and columns of a table in two releases, in words."""
    from tarn.storage.contents import changes

    old, new = change.before, change.after
    versions = f"{old.version if old else '-'} → {new.version if new else '-'}"
    if old is None or new is None:
        rows = f"+{new.rows:,}" if new else f"-{old.rows if old else 0:,}"
        return versions, rows, "new table" if new else "table gone"
    found = changes(lake(), change.name, old, new)
    rows = f"+{found.rows_added:,} -{found.rows_removed:,}"
    told = [f"+{name}" for name in found.columns_added]
    told += [f"-{name}" for name in found.columns_removed]
    told += [f"{name}: other type" for name in found.columns_retyped]
    if found.columns_changed:
        told.append(f"other values in {', '.join(found.columns_changed)}")
    return versions, rows if found else "the same rows", ", ".join(told)


def _maker(one: releases.Release) -> str:
    return ", ".join(f"{key} {value}" for key, value in one.made_by.items())
