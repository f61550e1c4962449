"""The command line: one thin verb per job. Engines are imported by the verb that needs them."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage import catalog, releases
from tarn.storage.duck import preparation
from tarn.storage.lake import Lake

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
    """Load the source systems declared in ingestion/ (all of them, or those named)."""
    sys.exit(0 if _ingest(systems) else 1)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def build(arguments: Sequence[str]) -> None:
    """Run `dbt build` with ARGUMENTS; a green build publishes a release."""
    sys.exit(_dbt("build", *arguments))


@cli.command()
def docs() -> None:
    """Write the site: dashboards, dbt's documentation, column lineage."""
    click.echo(f"Site: {_docs()}")


@cli.command()
def run() -> None:
    """Ingest, build and document in one go, then say where things stand."""
    loaded = _ingest(())
    if _dbt("build", "--quiet", "--warn-error-options", "{}"):
        raise TarnError("the build failed, so readers still see the release before", "dbt build")
    page = _docs()
    _summary(page)
    sys.exit(0 if loaded else 1)


@cli.command()
@click.argument("sql", required=False)
@click.option("-f", "--format", "layout", type=click.Choice(_FORMATS), default="box")
def query(sql: str | None, layout: str) -> NoReturn:
    """Run SQL on the current release; without SQL, open DuckDB's own prompt on it."""
    lake = _lake()
    client = _beside("duckdb")
    prepared = "; ".join(preparation(lake))
    command = [client, "-readonly", "-bail", f"-{layout}", "-cmd", prepared]
    command += [str(catalog.ensure(lake)), *(["-c", sql] if sql else [])]
    sys.stdout.flush()
    os.execv(client, command)


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
    """What changed per table between two releases (default: up to the current one)."""
    table = Table("table", "changed", "version", "rows", box=None)
    for change in releases.diff(_release(before), _release(after)):
        old, new = change.before, change.after
        versions = f"{old.version if old else '-'} → {new.version if new else '-'}"
        rows = f"{(new.rows if new else 0) - (old.rows if old else 0):+,}"
        table.add_row(change.name, change.kind, versions, rows)
    _print(table) if table.row_count else click.echo("Nothing changed.")


@release.command()
@click.argument("number", type=int, required=False)
def rollback(number: int | None) -> None:
    """Let readers see an earlier release again (default: the one before)."""
    lake = _lake()
    one = releases.rollback(lake, number)
    catalog.build(lake, one)
    click.echo(f"Release {one.number} shows the tables of release {one.made_by['rollback_to']}.")


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


def _maker(one: releases.Release) -> str:
    return ", ".join(f"{key} {value}" for key, value in one.made_by.items())


def _print(table: Table) -> None:
    console = Console()
    Console(width=console.width if console.is_terminal else 200).print(table)


def _dbt(*arguments: str) -> int:
    """Run dbt beside this interpreter, in the project; its exit code."""
    return subprocess.run([_beside("dbt"), *arguments], cwd=settings().project_dir).returncode


def _beside(program: str) -> str:
    """A program that was installed with Tarn."""
    return str(Path(sys.executable).with_name(program))
