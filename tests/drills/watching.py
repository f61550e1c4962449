"""Runs a command of the project and kills it, at a time or when something happens in the lake."""

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tarn.storage.lake import Lake

_LOOK_EVERY = 0.004
"""Seconds."""


class Place(Protocol):
    """A project with a lake."""

    @property
    def folder(self) -> Path: ...

    @property
    def lake(self) -> Lake: ...

    @property
    def environment(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Moment:
    """Something that happens to files of the lake."""

    name: str
    path: str
    """Pattern of a path below the lake's root."""
    gone: bool = False
    """Whether files of such a path go, instead of come."""


@dataclass(frozen=True)
class Kill:
    """When a command is to die."""

    at: Moment | None
    nth: int = 1
    """Of the files that come or go at the moment."""
    after: float = 0
    """Seconds, from then on or from the start."""
    latest: float | None = None
    """Seconds from the start, should the moment not come."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    returncode: int
    output: str
    seconds: float
    happened: Counter[Moment]
    killed: bool
    at: str
    """What it was killed at."""


def run(
    place: Place, command: Sequence[str], moments: Sequence[Moment], kill: Kill | None = None
) -> Ran:
    """Run a command in the project, with all its children killed when it is time."""
    lake = Path(place.lake.root)
    before = files(lake)
    happened: Counter[Moment] = Counter()
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=place.folder,
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    assert process.stdout is not None
    # Its output ends when the last of its children has.
    listener = threading.Thread(target=said.extend, args=(process.stdout,))
    listener.start()
    killed, at = False, "any time"
    due = began + kill.after if kill and kill.at is None else None
    latest = began + kill.latest if kill and kill.latest is not None else None
    while process.poll() is None:
        now = files(lake)
        for moment in moments:
            changed = before - now if moment.gone else now - before
            happened[moment] += sum(1 for path in changed if re.fullmatch(moment.path, path))
        before = now
        if kill and kill.at and due is None and happened[kill.at] >= kill.nth:
            due, at = time.monotonic() + kill.after, kill.at.name
        elif due is None and latest is not None and time.monotonic() >= latest:
            due = latest
        if due is not None and time.monotonic() >= due:
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
            break
        time.sleep(_LOOK_EVERY)
    returncode = process.wait()
    listener.join()
    seconds = time.monotonic() - began
    return Ran(returncode, "".join(said), seconds, happened, killed and returncode != 0, at)


def by_clock(seconds: int) -> list[str]:
    """What a command begins with whose clock is wrong by so much; libfaketime sees to it. Waiting
    is by the monotonic clock, which nobody can set."""
    right = ("FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1")
    return ["env", *right, "faketime", "-f", f"{seconds:+}s"] if seconds else []


def files(folder: Path) -> set[str]:
    """Paths of all files below a folder that others change meanwhile."""
    root = f"{folder}{os.sep}"
    found = (
        os.path.join(parent, name).removeprefix(root)
        for parent, _, names in os.walk(folder)
        for name in names
    )
    return set(found)


def age(folder: Path, days: float) -> None:
    """Let files of the lake grow older."""
    for path in files(folder):
        file = folder / path
        status = file.stat()
        os.utime(file, (status.st_atime - days * 86_400, status.st_mtime - days * 86_400))
