"""The clock of loads, and names that tell when they were given."""

import os
from datetime import UTC, datetime
from time import time_ns


def now() -> datetime:
    """UTC without zone, as all instants in the lake."""
    return datetime.now(UTC).replace(tzinfo=None)


def new_name() -> str:
    """A name that sorts by time: hexadecimal milliseconds, then random."""
    return f"{time_ns() // 1_000_000:012x}-{os.urandom(8).hex()}"


def named_at(name: str) -> datetime:
    """When a name was given; UTC without zone."""
    millis = int(name.rpartition("/")[2].partition("-")[0], 16)
    return datetime.fromtimestamp(millis / 1000, UTC).replace(tzinfo=None)
