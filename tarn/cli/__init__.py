"""The command line: one thin verb per job. Engines are imported by the verb that needs them."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

import click

from tarn.cli.alerts import alerts
from tarn.cli.collect import collect
from tarn.cli.console import CONSOLE, lake, say, shown
from tarn.cli.demo import demo
from tarn.cli.drift import drift
from tarn.cli.ingestion import ingest, load, schedule, standing, status
from tarn.cli.live import live
from tarn.cli.quarantine import quarantine
from tarn.cli.releases import find, release, tables
from tarn.cli.sources import init, relink, source
from tarn.cli.storage import maintain, storage
from tarn.cli.stream import stream
from tarn.errors import TarnError
from tarn.settings import program, settings
from tarn.storage import catalog
from tarn.storage.disk import disk_failure
from tarn.storage.duck import client

if TYPE_CHECKING:
    from tarn.ingestion.engine import LoadResult
    from tarn.serving.site import Site
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


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--from-release", type=int, metavar="N", help="Read raw tables as release N has them."
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def build(arguments: Sequence[str], from_release: int | None) -> None:
    """Run dbt build; a green one publishes a release."""
    if from_release is not None:
        return _rebuild(from_release, arguments)
    command = [program("dbt"), "build", *arguments]
    sys.exit(subprocess.run(command, cwd=settings().project_dir).returncode)


@cli.command()
def docs() -> None:
    """Write the site: dashboards, documentation, lineage."""
    from tarn.serving.site import build_site

    click.echo(f"Written: {shown(build_site(standing()).index)}")


@cli.command()
def run() -> None:
    """Ingest, build and document; then say where things stand."""
    from tarn.dbt.build import build
    from tarn.serving.site import build_site

    started = time.monotonic()
    loads = load(())
    if not build(settings().project_dir, CONSOLE):
        raise TarnError("the build is red, so readers still see the release before")
    site = build_site(standing())
    _summary(loads, site, time.monotonic() - started)
    sys.exit(any(load.failed for load in loads))


@cli.command()
@click.argument("sql", required=False)
@click.option("-f", "--format", "layout", type=click.Choice(_FORMATS), default="box")
@click.option(
    "--live", "is_live", is_flag=True, help="Read streams as they are now, through dbt's views."
)
def query(sql: str | None, layout: str, is_live: bool) -> NoReturn:
    """Run SQL on the current release, or open a prompt on it."""
    here = lake()
    command, variables = _client(here, layout)
    ask = ["-c", sql] if sql else []
    sys.stdout.flush()
    if not is_live:
        os.execve(command[0], [*command, str(catalog.ensure(here)), *ask], variables)
    from tarn.storage.live import write

    with TemporaryDirectory(prefix="live-", dir=_made(here.work_dir)) as folder:
        # A prompt moves on with the streams; one query reads all of them as of one moment.
        file = write(here, Path(folder), is_moving=not sql)
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C ends a query, not the prompt.
        sys.exit(subprocess.run([*command, str(file), *ask], env=variables).returncode)


def _client(here: "Lake", layout: str) -> tuple[list[str], dict[str, str]]:
    """DuckDB's command line, ready to read the lake, and the variables it needs."""
    statements, keys = client(here)
    # Making a secret answers `true`, which is no part of the query's result.
    prepared = (f".output {os.devnull}", "; ".join(statements), ".output")
    command = [program("duckdb"), "-readonly", "-bail", f"-{layout}"]
    command += [argument for text in prepared for argument in ("-cmd", text)]
    return command, {**settings().variables, **keys}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


for verb in (
    alerts,
    collect,
    demo,
    drift,
    ingest,
    init,
    live,
    maintain,
    quarantine,
    release,
    schedule,
    source,
    status,
    storage,
    stream,
    tables,
):
    cli.add_command(verb)


def main() -> None:
    """Run the command line; a failure a user can mend is one message and exit code 1."""
    try:
        relink()
        cli()
    except Exception as error:
        told = error if isinstance(error, TarnError) else disk_failure(error, settings().lake)
        if told is None:
            raise
        click.echo(click.style("error: ", fg="red", bold=True) + str(told), err=True)
        sys.exit(1)


def _rebuild(number: int, arguments: Sequence[str]) -> None:
    """Build from a release's raw tables, and say what came out otherwise than then."""
    from tarn.dbt.build import rebuild

    differ = rebuild(settings().project_dir, number, arguments)
    if differ is None:
        sys.exit(1)
    same = f"Every table has the rows it has in release {number}, by content hash."
    say(f"Other rows than in release {number}: {', '.join(differ)}." if differ else same)


def _summary(loads: "Sequence[LoadResult]", site: "Site", seconds: float) -> None:
    """Rows in, tables out, the release, where to look, what to try next."""
    current = find(None)
    rows = sum(load.rows.accepted for load in loads)
    held = sum(pin.rows for pin in current.tables.values())
    ours = Path(shutil.which("tarn") or "").parent == Path(program("tarn")).parent
    shell = "" if ours else f"{shown(Path(program('tarn')).parent)}/"
    say(
        f"""
Done in {seconds:.0f} s.
  Rows in    {rows:,} from {len(loads)} systems
  Tables     {len(current.tables)} with {held:,} rows in {shown(settings().lake)}
  Release    {current.number}
  Look at    {shown(site.index)}
             {shown(catalog.path(lake()))} (any DuckDB client)

Next:
  {shell}tarn query                 SQL on this release
  {shell}tarn release show          its tables
  {shell}dbt build --select marts   plain dbt, on what is loaded"""
    )
