"""What builds are reading: the versions that one began with stay readable until it ends."""

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from uuid import uuid4

from obstore.exceptions import BaseError

from tarn.storage.lake import OWN_SCHEMA, Lake

log = logging.getLogger(__name__)

FOLDER = f"{OWN_SCHEMA}/readers"
_FAILURES = (BaseError, OSError)


def begin(lake: Lake, versions: Mapping[str, int]) -> str | None:
    """Tell upkeep which version of each table is being read; gives what `end` takes.

    Who may only read the lake cannot tell, and reads all the same.
    """
    path = f"{FOLDER}/{uuid4().hex}.json"
    try:
        lake.objects.put(path, json.dumps(dict(versions)).encode())
    except _FAILURES as error:
        log.debug("upkeep is not told of what is read: %s", error)
        return None
    return path


def end(lake: Lake, path: str) -> None:
    """The reading is done."""
    try:
        lake.objects.delete(path)
    except _FAILURES as error:
        log.debug("%s stays until its grace has passed: %s", path, error)


def versions_read(lake: Lake, since: datetime) -> Iterator[Mapping[str, int]]:
    """What those that began since then read; older ones died."""
    for entry in lake.files(FOLDER):
        if entry["last_modified"] >= since:
            try:
                yield json.loads(bytes(lake.objects.get(entry["path"]).bytes()))
            except FileNotFoundError:  # it ended meanwhile
                continue
