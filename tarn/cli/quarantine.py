"""Verbs for rows that broke their contract."""

import click
from rich.markup import escape
from rich.table import Table

from tarn.cli.console import lake, print_table, say

_REASON = click.option("--reason", default="", help="Only rows whose reason has this in it.")
_MEANT = click.argument("meant", metavar="SYSTEM[.TABLE]")


@click.group()
def quarantine() -> None:
    """Rows that broke their contract: look at them, put them through again, let them go."""


@quarantine.command("list")
@click.argument("meant", metavar="[SYSTEM[.TABLE]]", required=False)
def list_groups(meant: str | None) -> None:
    """How many rows are kept, and why."""
    from tarn.ingestion.review import groups

    table = Table("table", "rows", "reason", "first seen (UTC)", "last seen", "as at", box=None)
    for one in groups(lake(), meant):
        seen = f"{one.first_seen:%Y-%m-%d %H:%M}", f"{one.last_seen:%Y-%m-%d %H:%M}"
        told = escape(one.reason), *seen, escape(one.place or "")
        table.add_row(one.table, f"{one.rows:,}", *told)
    print_table(table) if table.row_count else say("Nothing is in quarantine.")


@quarantine.command()
@click.argument("table", metavar="SYSTEM.TABLE")
@_REASON
@click.option("--limit", default=20, help="How many; default: 20.")
def show(table: str, reason: str, limit: int) -> None:
    """Rows as they were delivered, those seen last first."""
    from tarn.ingestion.review import rows

    for one in rows(lake(), table, reason, limit):
        place = f"{one.place}: " if one.place else ""
        say(f"{place}{one.reason}")
        say(f"  {one.first_seen:%Y-%m-%d %H:%M} to {one.last_seen:%Y-%m-%d %H:%M}  {one.row}")


@quarantine.command()
@_MEANT
@_REASON
def replay(meant: str, reason: str) -> None:
    """Put rows through the contract as it is now; those that pass are loaded."""
    from tarn.ingestion.review import replay_all, told

    for one in replay_all(meant, reason):
        say(told(one))


@quarantine.command()
@_MEANT
@_REASON
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(meant: str, reason: str, yes: bool) -> None:
    """Forget rows for good."""
    from tarn.ingestion.review import count, discard

    rows = count(lake(), meant, reason)
    if not yes:
        click.confirm(f"Forget {rows:,} rows of {meant} for good?", abort=True)
    say(f"{discard(lake(), meant, reason):,} rows are forgotten.")
