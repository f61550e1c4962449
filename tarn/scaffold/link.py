"""How the dbt of a project finds the macros of the engine, wherever that is installed."""

import os
from pathlib import Path

import tarn
from tarn.errors import TarnError

PROJECT_FILE = "dbt_project.yml"
LINK = ".engine"
"""A link that the project's `macro-paths` name and git ignores."""


def link_engine(project: Path) -> None:
    """Let the project's dbt find the macros of the engine that runs now, if it looks for them."""
    if LINK not in (project / PROJECT_FILE).read_text(encoding="utf-8"):
        return
    link, macros = project / LINK, Path(tarn.__file__).parent / "dbt" / "macros"
    if link.is_symlink() and link.readlink() == macros:
        return
    if link.exists() and not link.is_symlink():
        raise TarnError("is no link to the engine", str(link), "remove it")
    draft = project / f"{LINK}.{os.getpid()}"
    draft.symlink_to(macros, target_is_directory=True)
    draft.replace(link)
