"""Events between their acceptance and their load: files in the lake, whole from their first byte.

A segment is written once, by one writer, and is safe when `put` returns: on disk it is synced under
another name and then renamed; an object store does that by itself. It is dropped when its rows are
in the lake; a load that is killed before finds it again and tells its events by their ids.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import NotFoundError

from tarn.storage.clock import new_name
from tarn.storage.lake import OWN_SCHEMA, Lake

_SEGMENT = ".jsonl"
_DRAFT = ".draft"
_ABANDONED = timedelta(hours=1)
"""A draft of that age is of a writer that was killed, and was never acknowledged."""


@dataclass(frozen=True)
class Spool:
    """The events of one table that wait."""

    lake: Lake
    system: str
    table: str

    @property
    def folder(self) -> str:
        return f"{OWN_SCHEMA}/webhook/{self.system}/{self.table}"

    def put(self, events: Sequence[dict[str, Any]]) -> None:
        """Make events safe, as one segment."""
        lines = (json.dumps(event, ensure_ascii=False, allow_nan=False) for event in events)
        content = "".join(f"{line}\n" for line in lines).encode()
        name = f"{self.folder}/{new_name()}{_SEGMENT}"
        with self.lake.told():
            if self.lake.is_local:
                _put_synced(Path(self.lake.root, name), content)
            else:
                obstore.put(self.lake.objects, name, content)

    def segments(self) -> list[str]:
        """What waits, oldest first."""
        found = list(self.lake.files(self.folder))
        for entry in found:
            age = datetime.now(UTC) - entry["last_modified"]
            if entry["path"].endswith(_DRAFT) and age > _ABANDONED:
                self.drop([entry["path"]])
        return sorted(entry["path"] for entry in found if entry["path"].endswith(_SEGMENT))

    def read(self, segment: str) -> list[dict[str, Any]]:
        """Its events; none if another load has taken it in meanwhile."""
        with suppress(NotFoundError, FileNotFoundError):
            content = bytes(obstore.get(self.lake.objects, segment).bytes())
            return [json.loads(line) for line in content.decode().split("\n") if line]
        return []

    def drop(self, segments: Iterable[str]) -> None:
        """Forget segments whose events are in the lake; a dry run has put none there."""
        if self.lake.is_rehearsal:
            return
        for segment in segments:
            with suppress(NotFoundError, FileNotFoundError):
                obstore.delete(self.lake.objects, segment)


def _put_synced(target: Path, content: bytes) -> None:
    _make_synced(target.parent)
    draft = target.with_name(target.name + _DRAFT)
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(target)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _make_synced(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_synced(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
