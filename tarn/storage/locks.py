"""Locks among the processes of a machine. The system lets go of them, however a process ends."""

import fcntl
from typing import IO, Any


def taken(lock: IO[Any]) -> bool:
    """Take the lock of an open file, unless another process has it; whether it is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(lock: IO[Any]) -> None:
    """Take the lock when it is free."""
    fcntl.flock(lock, fcntl.LOCK_EX)
