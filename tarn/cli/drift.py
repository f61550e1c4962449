"""What sources changed without notice, and who uses it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.table import Table

from tarn.cli.console import CONSOLE, lake, print_table, say
from tarn.settings import settings

if TYPE_CHECKING:
    from tarn.ingestion.drift import Noticed
    from tarn.serving.lineage import Lineage


@click.command()
@click.argument("system", required=False)
@click.option("--blocking", is_flag=True, help="Only what keeps a table from being loaded.")
def drift(system: str | None, blocking: bool) -> None:
    """What sources changed without notice: before, after, since when, and who uses it."""
    from tarn.ingestion.drift import noticed, open_blocks

    blocks = open_blocks(lake())
    known = noticed(lake(), system)
    shown = [each for each in known if each in blocks or not blocking]
    if not shown:
        say("Nothing blocks." if blocking else "No source has changed.")
        return
    print_table(_listed(shown, blocks, _lineage()), at_least=120)
    for table in dict.fromkeys(f"{each.system}.{each.table}" for each in shown if each in blocks):
        say(f"{table} is not loaded until this is mended; what is made of it stays as released.")


def _lineage() -> "Lineage":
    """Of the project as it is now: dbt compiles it for that."""
    from tarn.serving.documentation import generate_dbt_docs
    from tarn.serving.lineage import Lineage

    with CONSOLE.status("column lineage"):
        return Lineage(generate_dbt_docs(settings()))


def _listed(changes: "Sequence[Noticed]", blocks: "Sequence[Noticed]", lineage: "Lineage") -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("since (UTC)", "table", "column", "change", "verdict", "models", "exposures"):
        table.add_column(heading, overflow="fold")
    for each in reversed(changes):
        users = lineage.users(f"raw_{each.system}.{each.table}", each.column or "")
        table.add_row(
            f"{each.noticed_at:%Y-%m-%d %H:%M}",
            f"{each.system}.{each.table}",
            each.column or "",
            _change(each),
            "[red]blocks[/red]" if each in blocks else _ended(each),
            "\n".join(users.models),
            "\n".join(users.exposures),
        )
    return table


def _change(each: "Noticed") -> str:
    """The kind of change, and the difference where there is one."""
    difference = [part for part in (each.before, each.after) if part]
    return f"{each.change} {' → '.join(difference)}"


def _ended(each: "Noticed") -> str:
    return "mended" if each.verdict == "blocked" else each.verdict
