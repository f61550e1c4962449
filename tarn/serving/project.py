"""The project as dbt reads it now, without running anything."""

import subprocess
from pathlib import Path

from tarn.errors import TarnError
from tarn.settings import Settings, program


def parsed(home: Settings, user: str) -> Path:
    """The folder with dbt's manifests; each user has its own, as a build may be under way.

    Takes seconds.
    """
    target = home.work_dir / user
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
    return target
