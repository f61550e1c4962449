"""Where loads keep what does not outlive them, and how they keep out of each other's way."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tarn.errors import TarnError
from tarn.storage.locks import taken, wait

log = logging.getLogger(__name__)


@contextmanager
def workspace(work_dir: Path) -> Iterator[Path]:
    """A folder for this process alone; those that killed processes left are removed."""
    base = work_dir / "ingestion"
    folder = base / str(os.getpid())
    base.mkdir(parents=True, exist_ok=True)
    for left in base.iterdir():
        if left == folder or not _is_running(left.name):
            shutil.rmtree(left, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_taken(work_dir: Path, system: str) -> bool:
    """Whether a process of this machine loads the system just now."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with _lock(work_dir, system).open("w") as lock:
        return not taken(lock)


@contextmanager
def alone(work_dir: Path, system: str) -> Iterator[None]:
    """Wait until no other process loads the system. The lock ends with its process."""
    with _lock(work_dir, system).open("w") as lock:
        if not taken(lock):
            log.warning("%s is being loaded by another process, waiting for it", system)
            wait(lock)
        yield


@contextmanager
def streaming(work_dir: Path, system: str) -> Iterator[None]:
    """Be the process of this machine that streams a system; raises TarnError if one does."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with _stream_lock(work_dir, system).open("a+") as lock:
        if not taken(lock):
            what = f"process {_owner(lock)} streams it already"
            raise TarnError(what, system, "stop that process first, or leave the system to it")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def streamer(work_dir: Path, system: str) -> str | None:
    """The process of this machine that streams a system just now."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with _stream_lock(work_dir, system).open("a+") as lock:
        return None if taken(lock) else _owner(lock)


def _owner(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read().strip() or "unknown"


def _stream_lock(work_dir: Path, system: str) -> Path:
    return work_dir / f"stream-{system}.lock"


def _lock(work_dir: Path, system: str) -> Path:
    return work_dir / f"ingestion-{system}.lock"


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
