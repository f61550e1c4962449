"""Files in a folder, wherever it is: which of them are new, and what becomes of each.

A file counts as loaded by its path and content. A changed one is loaded again, and where rows
are only appended, its rows take the place of those it gave before. One that is broken goes to
quarantine as a whole and is remembered like the others; one that is being written waits.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.files import FilesTable
from tarn.ingestion.landed import SOURCE_FILE, Landed
from tarn.ingestion.ledger import LoadedFile, remember, remembered
from tarn.ingestion.masking import masked, secrets_in
from tarn.ingestion.sources import Extract, Offered, Source
from tarn.ingestion.sources.files.checking import checked
from tarn.ingestion.sources.files.contents import named_format
from tarn.ingestion.sources.files.offering import offered
from tarn.ingestion.sources.files.places import NEVER, Found, place
from tarn.ingestion.sources.files.reading import Copy, Reading
from tarn.ingestion.sources.files.unfinished import growing, is_draft, is_hidden
from tarn.settings import Settings
from tarn.storage.duck import identifier, select_from


class Files(Source):
    """A folder of files, of which each table takes those its patterns name."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared = declared
        address = str(declared.system.connection)
        self.secrets = frozenset(secrets_in(address))
        self.shown = masked(address.partition("?")[0])
        self.place = place(address, home, declared.file.where("connection"))

    def extract(self, table: str, landed: Landed) -> Extract | None:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, FilesTable)
        known = remembered(landed.desk, self.declared.name, table) if landed.table else {}
        scratch = Path(mkdtemp(dir=landed.desk.folder))
        listed, waiting = self.listed(table)
        if not (listed or waiting) and (not known or spec.write == "replace"):
            patterns = ", ".join(spec.patterns)
            where = self.declared.file.where("tables", table, "path")
            raise TarnError(f"no file matches {patterns} in {self.shown}", where)
        copies = [Copy(self.place, each, scratch / str(i)) for i, each in enumerate(listed)]
        wanted = _wanted(spec, copies, known, bool(waiting))
        if not wanted:
            return _nothing(waiting, table) if waiting else None
        format = self.format_of([copy.found for copy in wanted], table)
        reading = Reading(table, format, spec, landed.name, landed.schema)
        reading.notes += waiting
        for copy in wanted:
            # Told before it is read: what changes meanwhile is loaded again.
            assert copy.fingerprint
            if copy.is_unchanged():
                reading.take(copy)
            else:
                reading.notes.append(f"{copy.found.path} is being written: it waits")
        reading.check_some_left()
        _check_none_lost(reading, spec, landed)
        if not reading.files and not reading.broken:
            return _nothing(reading.notes, table)

        def note(load_id: str) -> None:
            remember(
                landed.desk,
                self.declared.name,
                table,
                [_as_loaded(copy, load_id) for copy in reading.copies.values()],
            )

        return Extract(
            reading.open,
            is_objects=format == "json",
            spelt=reading.spelt,
            redelivered="true" if spec.primary_key else None,
            is_changed=True,
            files=reading.paths if _has_rows_of(reading.paths, spec, landed) else (),
            notes=reading.notes,
            remember=note,
        )

    def check(self) -> list[str]:
        return [f"{self.shown} can be listed", *checked(self)]

    def offered(self) -> list[Offered]:
        return offered(self.place)

    def listed(self, table: str) -> tuple[list[Found], list[str]]:
        """The files of a table, oldest first: of two rows with a key the newer file's counts. And
        what is said of those that are not ready."""
        spec = self.declared.system.tables[table]
        assert isinstance(spec, FilesTable)
        named = {each.path: each for pattern in spec.patterns for each in self.place.list(pattern)}
        files = [each for path, each in named.items() if not is_hidden(path, spec.patterns)]
        drafts = {each.path for each in files if is_draft(each.path)}
        unready = {
            **dict.fromkeys(drafts, "is incomplete by its name"),
            **dict.fromkeys(growing(self.place, files), "is being written"),
        }
        if spec.wait_for:
            folders = {_folder(each.path) for each in files}
            for folder in folders:
                if not self.place.look(f"{folder}{spec.wait_for}"):
                    late = [each.path for each in files if _folder(each.path) == folder]
                    unready |= dict.fromkeys(late, f"waits for {folder}{spec.wait_for}")
            files = [each for each in files if not each.path.endswith(f"/{spec.wait_for}")]
            files = [each for each in files if each.path != spec.wait_for]
        ready = [each for each in files if each.path not in unready]
        notes = [f"{path} {why}" for path, why in sorted(unready.items()) if path in named]
        return sorted(ready, key=lambda each: (each.modified_at, each.path)), notes

    def format_of(self, files: Sequence[Found], table: str) -> str:
        spec = self.declared.system.tables[table]
        assert isinstance(spec, FilesTable)
        formats = {named_format(each.path) for each in files}
        if spec.format:
            return spec.format
        if len(formats) != 1 or None in formats:
            where = self.declared.file.where("tables", table, "path")
            raise TarnError("the files' names do not tell one format", where, "add format:")
        return str(formats.pop())


def _wanted(
    spec: FilesTable, copies: Sequence[Copy], known: Mapping[str, LoadedFile], must_wait: bool
) -> list[Copy]:
    """New and changed files; for a table that is replaced all, if any is new, changed, gone, and
    all are ready."""
    if spec.write == "replace":
        last = max((file.load_id for file in known.values()), default="")
        known = {path: file for path, file in known.items() if file.load_id == last}
    changed = [copy for copy in copies if not _is_same(copy, known.get(copy.found.path))]
    if spec.write != "replace":
        return changed
    gone = set(known) - {copy.found.path for copy in copies}
    return list(copies) if (changed or gone) and not must_wait else []


def _is_same(copy: Copy, loaded: LoadedFile | None) -> bool:
    """Whether a file's content is what was loaded. Unread if its place tells size and time."""
    found = copy.found
    if loaded is None or (found.bytes >= 0 and loaded.bytes != found.bytes):
        return False
    dated = found.modified_at != NEVER and loaded.modified_at == found.modified_at
    return dated or loaded.fingerprint == copy.fingerprint


def _as_loaded(copy: Copy, load_id: str) -> LoadedFile:
    size = copy.found.bytes if copy.found.bytes >= 0 else copy.file.stat().st_size
    return LoadedFile(copy.found.path, copy.fingerprint, size, copy.found.modified_at, load_id)


def _nothing(notes: Sequence[str], table: str) -> Extract:
    """No rows, but something to say."""
    import dlt

    return Extract(lambda: dlt.resource([], name=table), notes=notes)


def _folder(path: str) -> str:
    return path[: path.rfind("/") + 1]


def _has_rows_of(paths: Sequence[str], spec: FilesTable, landed: Landed) -> bool:
    """Whether rows of these files are to be replaced: the lake has some, and nothing else tells
    them from new ones."""
    if landed.table is None or spec.write != "append" or spec.primary_key:
        return False
    return _holds(paths, landed)


def _holds(paths: Sequence[str], landed: Landed) -> bool:
    if landed.table is None or not paths:
        return False
    sql = f"""
        select 1 from ({select_from(landed.table)})
        where {identifier(SOURCE_FILE)} in (select unnest($paths)) limit 1
    """
    with landed.desk.session() as connection:
        return connection.execute(sql, {"paths": list(paths)}).fetchone() is not None


def _check_none_lost(reading: Reading, spec: FilesTable, landed: Landed) -> None:
    """Raise TarnError if replacing the table would drop rows of a file that has broken since."""
    if spec.write == "replace" and _holds(list(reading.broken), landed):
        path, why = next(iter(reading.broken.items()))
        fix = "the table keeps its rows; mend or remove the file"
        raise TarnError(f"{path} is broken: {why}", landed.name, fix)
