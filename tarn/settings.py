"""Where the project, its lake and its working folder are, and what the environment holds.

The only module that reads the environment. Secrets come from the environment or from
`secrets.env` (lines of NAME=value, ignored by git); the environment wins.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from tarn.errors import TarnError

_REFERENCE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_MARKER = "dbt_project.yml"
SECRETS_FILE = "secrets.env"
FROM_RELEASE = "TARN_FROM_RELEASE"
"""Variable that names a release: dbt reads tables as that has them, instead of the latest."""


@dataclass(frozen=True)
class Settings:
    """What one run of Tarn knows about its surroundings."""

    project_dir: Path
    lake: str
    """Root of the lake: an absolute path or an `s3://` address."""
    work_dir: Path
    """Disposable files: dbt's DuckDB file, dlt's folders. Everything in it can be made again."""
    variables: dict[str, str] = field(repr=False)

    @cached_property
    def git_revision(self) -> str:
        """The project's commit, with `-dirty` when files differ from it; empty outside git."""
        command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
        try:
            done = subprocess.run(command, cwd=self.project_dir, capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip()

    def expand(self, text: str, where: str) -> str:
        """Put the value of each `${NAME}` or `${NAME:-default}` into `text`.

        `where` names the file and line in the error that a missing variable raises.
        """

        def value(match: re.Match[str]) -> str:
            found = self.variables.get(match["name"]) or match["default"]
            if found is None:
                raise TarnError(
                    f"variable {match['name']} is not set",
                    where,
                    f"export {match['name']}=… or add a line {match['name']}=… to {SECRETS_FILE}",
                )
            return found

        return _REFERENCE.sub(value, text)


@cache
def settings() -> Settings:
    """The settings of the project that the current folder belongs to."""
    project = find_project(Path.cwd())
    variables = {**read_secrets(project / SECRETS_FILE), **os.environ}
    lake = variables.get("TARN_LAKE", "lake")
    if "://" not in lake:
        lake = str((project / lake).resolve())
    work = (project / variables.get("TARN_WORK", ".tarn")).resolve()
    return Settings(project, lake.rstrip("/"), work, variables)


def program(name: str) -> str:
    """The path of a program that was installed with Tarn."""
    return str(Path(sys.executable).with_name(name))


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` that holds a dbt project."""
    for folder in (start, *start.parents):
        if (folder / _MARKER).is_file():
            return folder
    raise TarnError(
        f"no {_MARKER} here or in a folder above", str(start), "change into your project's folder"
    )


def read_secrets(path: Path) -> dict[str, str]:
    """NAME=value lines of a secrets file; blank lines and `#` comments are skipped."""
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            # The line itself may be a secret, so it is not repeated.
            raise TarnError("expected NAME=value", f"{path.name}:{number}", "mend that line")
        found[name.removeprefix("export ").strip()] = value.strip().strip("'\"")
    return found
