"""The verb that hands over to the demo a project has: upstream systems to try things on."""

import os
import sys
from pathlib import Path

import click

from tarn.errors import TarnError
from tarn.settings import settings

FOLDER = "demo"


class _AsItIs(click.Command):
    """Takes all that follows, `--` and `--help` too, for another program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["arguments"] = args
        return []


@click.command(cls=_AsItIs, options_metavar="[ARGUMENTS]...")
def demo(arguments: list[str]) -> None:
    """Run the project's demo: python -m demo ARGUMENTS."""
    project = settings().project_dir
    main = project / FOLDER / "__main__.py"
    if not main.exists():
        raise TarnError(
            f"this project has no demo: {Path(FOLDER, main.name)} is not there",
            str(project),
            "a demo is a Python program of the project's own; Tarn runs what it finds",
        )
    os.chdir(project)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", FOLDER, *arguments])
