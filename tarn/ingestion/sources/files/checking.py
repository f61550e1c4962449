"""What can be said of a system's files without loading them."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tarn.errors import TarnError
from tarn.ingestion.declarations.files import FilesTable
from tarn.ingestion.sources.files.places import Found
from tarn.ingestion.sources.files.reading import Copy, Reading

if TYPE_CHECKING:
    from tarn.ingestion.sources.files.source import Files

_READ = 20
"""So many of a table's newest files are opened."""
_TOLD = 5


def checked(source: "Files") -> list[str]:
    """A table a line: how many files match, what they are like, which are broken or not ready."""
    lines: list[str] = []
    for table in source.tables:
        with TemporaryDirectory() as scratch:
            lines += _table(source, table, Path(scratch))
    return lines


def _table(source: "Files", table: str, scratch: Path) -> list[str]:
    spec = source.declared.system.tables[table]
    assert isinstance(spec, FilesTable)
    files, waiting = source.listed(table)
    lines = [f"{table}: {note}" for note in waiting[:_TOLD]]
    if not files:
        return [f"{table}: no file matches {', '.join(spec.patterns)}", *lines]
    try:
        reading = read(source, table, files[-_READ:], scratch)
    except TarnError as error:
        return [f"{table}: {error.what}", *lines]
    counts = Counter(part.described for opened in reading.files for part in opened.parts)
    kinds = "; ".join(f"{count} with {kind}" for kind, count in counts.most_common(_TOLD))
    among = f", of the newest {_READ}" if len(files) > _READ else ""
    told = f"{table}: {len(files)} {'file' if len(files) == 1 else 'files'}{among}"
    return [f"{told}, {kinds or 'none can be read'}", *lines, *_notes(table, reading)]


def _notes(table: str, reading: Reading) -> list[str]:
    more = len(reading.notes) - _TOLD
    told = [f"{table}: {note}" for note in reading.notes[:_TOLD]]
    return [*told, f"{table}: and {more} more"] if more > 0 else told


def read(source: "Files", table: str, files: list[Found], scratch: Path) -> Reading:
    """Files opened and checked as a load would."""
    spec = source.declared.system.tables[table]
    assert isinstance(spec, FilesTable)
    reading = Reading(table, source.format_of(files, table), spec, table, None)
    for i, found in enumerate(files):
        reading.take(Copy(source.place, found, scratch / str(i)))
    return reading
