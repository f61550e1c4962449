"""`dbt build` told in few lines: how far it is, what is wrong, and the release it ends in."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tarn.settings import FROM_RELEASE, program, settings
from tarn.storage import releases
from tarn.storage.contents import content_hash
from tarn.storage.lake import Lake

QUIET_SECONDS = 10
"""Between two lines of progress where there is no terminal to redraw."""


def build(project: Path, console: Console) -> bool:
    """Run `dbt build` in a project, and say whether it is green."""
    command = [program("dbt"), "--log-format", "json", "--no-use-colors", "build"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with console.status("dbt build") as status:
            progress = _Progress(console, time.monotonic())
            for event in _events(process.stdout):
                status.update(progress.take(event))
    return process.returncode == 0


def rebuild(project: Path, number: int, arguments: Sequence[str]) -> list[str] | None:
    """Build everything from the raw tables and snapshots of a release, as if it were then.

    Gives the tables whose rows differ from that release's; None when the build is red.
    """
    lake = Lake.open(settings())
    then = releases.read(lake, number)
    command = [
        program("dbt"),
        "build",
        "--full-refresh",
        "--exclude-resource-type",
        "snapshot",
        *arguments,
    ]
    environment = {**settings().variables, FROM_RELEASE: str(number)}
    if subprocess.run(command, cwd=project, env=environment).returncode:
        return None
    now = releases.current(lake)
    assert now is not None
    return [
        change.name
        for change in releases.diff(then, now)
        if not (change.before and change.after)
        or content_hash(lake, change.name, change.before)
        != content_hash(lake, change.name, change.after)
    ]


class _Progress:
    """What the events so far come to."""

    def __init__(self, console: Console, started: float) -> None:
        self.console, self.started, self.told = console, started, started
        self.done = self.total = 0

    def take(self, event: dict[str, Any]) -> str:
        """Say what an event gives reason to say; the line that tells how far the build is."""
        info, data = event["info"], event["data"]
        if info["name"] == "JinjaLogInfo" or info["level"] == "error":
            self.console.print(info["msg"], markup=False, highlight=False, soft_wrap=True)
        if info["name"].startswith("Log") and info["name"].endswith("Result"):
            self.done += 1
        elif info["name"] == "LogStartLine":
            self.total = data["total"]
        now = time.monotonic()
        line = f"dbt build: {self.done} of {self.total}, {now - self.started:.0f} s"
        if self.total and not self.console.is_terminal and now > self.told + QUIET_SECONDS:
            self.told = now
            self.console.print(line, highlight=False)
        return line


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            event = None
        if isinstance(event, dict) and "info" in event:
            yield event
        elif line.strip():
            yield {"info": {"name": "", "level": "error", "msg": line.rstrip()}, "data": {}}
