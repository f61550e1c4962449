"""Files that are still being written: told by their names, by who has them open, by waiting."""

import fcntl
import os
import signal
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from tarn.ingestion.sources.files.places import Found, Place
from tarn.storage.clock import now

_MARKS = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download", ".swp")
_FRESH = timedelta(seconds=3)
"""A file that changed so lately may be changing still."""
_HELD = timedelta(minutes=10)
"""Who has had a file open for so long without writing has forgotten it."""
_MOMENT = 0.15


def is_hidden(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path is of those that programs keep for themselves, unless a pattern says so."""
    parts = [part for part in path.split("/") if part.startswith((".", "_", "~$"))]
    return any(not any(part in pattern.split("/") for pattern in patterns) for part in parts)


def is_draft(path: str) -> bool:
    """Whether a name says that the file is not complete."""
    name = path.lower()
    return name.endswith((*_MARKS, "~"))


def growing(place: Place, files: Sequence[Found]) -> set[str]:
    """Paths of files that are being written now. Waits a moment only for those just changed."""
    if place.is_atomic:
        return set()
    fresh = [file for file in files if _is_fresh(file.modified_at)]
    held = {file.path: _is_held(place, file) for file in files if place.is_local}
    if any(held.get(file.path) is None for file in fresh):
        time.sleep(_MOMENT)
    changed = {file.path for file in fresh if place.look(file.path) != file}
    return changed | {path for path, is_held in held.items() if is_held}


def _is_fresh(changed: datetime) -> bool:
    return abs(now() - changed) < _FRESH


def _is_held(place: Place, file: Found) -> bool | None:
    """Whether a process has the file open for writing: the kernel then gives no read lease. None
    where it gives none to us."""
    if now() - file.modified_at > _HELD:
        return False
    try:
        descriptor = os.open(place.fetch(file.path, Path()), os.O_RDONLY)
    except OSError:
        return None
    try:
        # What the kernel sends to the holder of a broken lease ends the process by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except (OSError, AttributeError):
        return None
    finally:
        os.close(descriptor)
    return False
