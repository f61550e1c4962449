"""The project as dbt reads it now, without running anything."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from tarn.errors import TarnError
from tarn.settings import Settings, program

_STATE = "state"
_PARSED = "partial_parse.msgpack"
_READ_BY_DBT = (".sql", ".yml", ".yaml", ".md", ".csv", ".py", ".jinja")
_OF_A_SHELL = {"_", "COLUMNS", "LINES", "OLDPWD", "PWD", "SHLVL"}
"""Variables that differ between two commands and tell dbt nothing."""


def parsed(home: Settings, user: str) -> Path:
    """The folder with dbt's manifests; each user has its own, as a build may be under way.

    Takes seconds if files or environment have changed since the last time.
    """
    target = home.work_dir / user
    mark, state = target / _STATE, _state(home)
    if mark.exists() and mark.read_text() == state:
        return target
    mark.unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        # What the last build has parsed, dbt need not parse again.
        shutil.copy(home.project_dir / "target" / _PARSED, target / _PARSED)
    command = [program("dbt"), "parse", "--target-path", str(target)]
    done = subprocess.run(
        command,
        cwd=home.project_dir,
        env={**home.variables, "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise TarnError(f"dbt parse failed:\n{said}", fix="run it by itself: dbt parse")
    mark.write_text(state)
    return target


def _state(home: Settings) -> str:
    """What dbt's answer depends on: the files it may read, by size and time, and variables."""
    digest = blake2b(program("dbt").encode(), digest_size=16)
    for path in sorted(_files(home)):
        status = os.stat(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    for name, value in sorted(home.variables.items()):
        if name not in _OF_A_SHELL:
            digest.update(f"{name}={value}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files(home: Settings) -> Iterator[str]:
    made = {home.lake, str(home.work_dir), str(home.project_dir / "target")}
    for folder, folders, names in os.walk(home.project_dir):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.join(folder, name) not in made
        ]
        yield from (os.path.join(folder, name) for name in names if name.endswith(_READ_BY_DBT))
    profiles = Path(home.variables.get("DBT_PROFILES_DIR", "~/.dbt"), "profiles.yml").expanduser()
    if profiles.exists():
        yield str(profiles)
