"""Makes the upstream systems' data once, whole or not at all, in the run folder."""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from demo import source
from demo.source import report

RECIPE = 2
"""Raise it when what is made changes: older data is then made anew."""

PARTS = (
    "pos.db",
    "catalogue",
    "marketing.json",
    "market_research",
    "media",
    "trends.json",
    "crm.json",
    "streams",
)
"""What is made in the run folder."""


def run_folder() -> Path:
    """Where the data lives: `demo/.run`, or what TARN_DEMO_RUN says."""
    chosen = os.environ.get("TARN_DEMO_RUN")
    folder = Path(chosen) if chosen else Path(__file__).parent / ".run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def token(run: Path, name: str) -> str:
    """Return the random secret called `name`, made on first use, readable by its owner only."""
    file = run / f"{name}.token"
    with _one_at_a_time(run):
        if not file.exists():
            write_private(file, secrets.token_urlsafe(32))
    return file.read_text()


def write_private(file: Path, text: str) -> None:
    """Write a file in whole, mode 600 from its first byte."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    unfinished.replace(file)


def missing(run: Path) -> list[str]:
    """Name the parts that are not there, or were made by another recipe or from other data."""
    return [part for part in PARTS if not _is_made(run / part)]


def make(run: Path) -> None:
    """Make what is missing, side by side. A second caller waits and finds it made."""
    with _one_at_a_time(run), ThreadPoolExecutor() as threads:
        makers = _makers()
        for done in [threads.submit(_make_part, run / part, makers[part]) for part in missing(run)]:
            done.result()


def _makers() -> dict[str, Callable[[Path], None]]:
    # Not above: seconds of imports, which serving alone does without.
    from demo import catalogue, crm, marketing, media, sharing, tills, trends
    from demo.streams import events

    makers = (tills, catalogue, marketing, sharing, media, trends, crm, events)
    return dict(zip(PARTS, (maker.make for maker in makers), strict=True))


def _make_part(target: Path, maker: Callable[[Path], None]) -> None:
    """Make beside, then swap in. The stamp goes first and comes last: without it nothing counts."""
    started = time.monotonic()
    unfinished = target.with_name(f".{target.name}.unfinished")
    _stamp(target).unlink(missing_ok=True)
    _remove(unfinished)
    maker(unfinished)
    _remove(target)
    unfinished.replace(target)
    write_private(_stamp(target), _recipe())
    report(f"made {target} in {time.monotonic() - started:.1f} s")


def _is_made(target: Path) -> bool:
    stamp = _stamp(target)
    return target.exists() and stamp.exists() and stamp.read_text() == _recipe()


def _stamp(target: Path) -> Path:
    return target.with_name(f".{target.name}.made")


def _recipe() -> str:
    return f"recipe {RECIPE}, {source.PACKAGE} {source.package_version()}\n"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    for file in (path, path.with_name(f"{path.name}-journal")):  # SQLite's, after a kill
        file.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(run: Path) -> Iterator[None]:
    """Hold the run folder's lock; the system frees it when its holder dies."""
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
