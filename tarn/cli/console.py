"""What all verbs share: the terminal, the lake, and how things are told."""

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tarn.settings import settings
from tarn.storage.lake import Lake

CONSOLE = Console()


def lake() -> Lake:
    """The lake of the project that the current folder belongs to."""
    return Lake.open(settings())


def say(text: str) -> None:
    """Text as it is."""
    CONSOLE.print(text, highlight=False, markup=False, soft_wrap=True)


def shown(path: Path | str) -> str:
    """A path as seen from the current folder."""
    return str(path) if "://" in str(path) else os.path.relpath(path)


def print_table(table: Table, at_least: int = 0) -> None:
    """A table: as wide as the terminal, or 200 where there is none."""
    width = CONSOLE.width if CONSOLE.is_terminal else 200
    Console(width=max(width, at_least)).print(table)
