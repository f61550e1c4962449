"""An empty project that runs on the installed engine."""

import re
from importlib.metadata import version
from pathlib import Path

from tarn.ingestion.declarations import FOLDER, SCHEMA_FILE, schema_text
from tarn.scaffold.files import render, write
from tarn.scaffold.link import LINK, PROJECT_FILE, link_engine

_FILES = {
    PROJECT_FILE: PROJECT_FILE,
    "profiles.yml": "profiles.yml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "secrets.env.example": "secrets.env.example",
    "requirements.txt": "requirements.txt",
    ".github/workflows/ci.yml": "ci.yml",
    "models/docs/loading.md": "loading.md",
}
"""Path in the project, and template."""
_EMPTY = (
    "models/staging",
    "models/intermediate",
    "models/marts",
    "models/outputs",
    "models/exposures",
    "models/metrics",
    "macros",
    "seeds",
    "snapshots",
    "tests",
)


def make_project(folder: Path) -> list[str]:
    """Make a project; its files. A folder that is a project already is only linked to the engine.

    Raises TarnError, and writes nothing, where a file of the project is there already.
    """
    if (folder / PROJECT_FILE).exists():
        link_engine(folder)
        return []
    title = folder.resolve().name
    values = {
        "project": _identifier(title),
        "title": title,
        "link": LINK,
        "version": version("tarn"),
    }
    files = {path: render(f"project/{name}", **values) for path, name in _FILES.items()}
    files |= {f"{path}/.gitkeep": "" for path in _EMPTY}
    write(folder, files)
    refresh_schema(folder)
    link_engine(folder)
    return list(files)


def refresh_schema(project: Path) -> None:
    """Write the JSON Schema that editors check declarations by, as this engine has it."""
    write(project, {f"{FOLDER}/{SCHEMA_FILE}": schema_text()}, force=True)


def _identifier(name: str) -> str:
    """A folder's name as dbt wants a project's."""
    text = re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_") or "lakehouse"
    return text if not text[0].isdigit() else f"project_{text}"
