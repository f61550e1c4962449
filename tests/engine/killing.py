"""Streams that are killed while they land, and what is in the lake in the end."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

from tests.engine.ingesting import Project

TARN = [sys.executable, "-c", "from tarn.cli import main; main()"]


def stream_once(project: Project, system: str, *options: str) -> str:
    """`tarn stream --once`; what it said. It must end well."""
    command = [*TARN, "stream", "--once", *options, system]
    done = subprocess.run(command, cwd=project.path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def killed(project: Project, system: str, table: str) -> None:
    """`tarn stream`, killed as soon as it has committed something: perhaps before the broker knows,
    and in the middle of what comes after."""
    log = project.path / f"lake/raw_{system}/{table}/_delta_log"
    before = len(list(log.glob("*.json")))
    command = [*TARN, "stream", system]
    with subprocess.Popen(
        command, cwd=project.path, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        try:
            while len(list(log.glob("*.json"))) == before:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def landed(project: Project, table: str, column: str) -> Counter[object]:
    """How often each value is in the lake."""
    return Counter(row[column] for row in project.rows(table, column))
