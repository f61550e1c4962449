"""What a file's name says it holds, and whether it does."""

import bz2
import gzip
import io
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from tarn.ingestion.sources.files.broken import BrokenFileError

FORMATS = {
    **dict.fromkeys(("csv", "tsv", "tab", "psv"), "csv"),
    **dict.fromkeys(("json", "jsonl", "ndjson", "jsonlines"), "json"),
    **dict.fromkeys(("xlsx", "xlsm", "xls", "xlsb", "ods"), "excel"),
    "parquet": "parquet",
    "avro": "avro",
}
_PACKED = {"gz": "gzip", "zst": "zstd", "zstd": "zstd", "bz2": "bzip2", "xz": "xz", "zip": "zip"}
_MAGIC = {
    b"PAR1": "Parquet",
    b"Obj\x01": "Avro",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"%PDF": "PDF",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"SQLite format 3": "SQLite",
    b"\x7fELF": "a program",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
_WANTED = {
    "csv": ("text",),
    "json": ("text",),
    "parquet": ("Parquet",),
    "avro": ("Avro",),
    "excel": ("zip", "an old Office file"),
}
_SHOWN = {"csv": "CSV", "json": "JSON", "parquet": "Parquet", "avro": "Avro", "excel": "Excel"}


@dataclass(frozen=True)
class Content:
    """Plain bytes to read: a file, or one member of an archive."""

    file: Path
    name: str
    """In messages: the file's path, with `!member` for one of an archive."""
    format: str


def named_format(path: str) -> str | None:
    """The format a name tells, compression aside; None if it tells none."""
    return FORMATS.get(_suffixes(path)[0])


def unpacked(file: Path, path: str, format: str, scratch: Path) -> Iterator[Content]:
    """What is in a file, decompressed; raises BrokenFileError if it is not what its name says."""
    packed = _suffixes(path)[1]
    found = kind_of(file)
    if packed is None:
        yield _checked(Content(file, path, format), found)
        return
    if found != _PACKED[packed]:
        raise BrokenFileError(f"its name says {_PACKED[packed]}, its content is {found}")
    if packed == "zip":
        yield from _members(file, path, format, scratch)
        return
    target = scratch / "unpacked"
    with _told(_PACKED[packed]), _opened(file, packed) as source, target.open("wb") as written:
        shutil.copyfileobj(source, written, 1 << 20)
    yield _checked(Content(target, path, format), kind_of(target))


def kind_of(file: Path) -> str:
    """What the first bytes are: a format's name, `text`, `a web page` or `nothing`."""
    with file.open("rb") as opened:
        head = opened.read(1 << 16)
    if not head:
        return "nothing"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page"
    if start.startswith(b"<?xml"):
        return "a web page" if b"<html" in head.lower() else "XML"
    return "text"


def _suffixes(path: str) -> tuple[str, str | None]:
    """What a name says of format and of compression."""
    name = path.partition("?")[0] if "?" in path else path
    suffixes = [suffix[1:].lower() for suffix in PurePosixPath(name).suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _PACKED else None
    return suffixes[-1] if suffixes else "", packed


def _checked(content: Content, found: str) -> Content:
    if found == "nothing":
        raise BrokenFileError("the file is empty: it has not even a header")
    if found not in _WANTED[content.format]:
        raise BrokenFileError(f"it is to be {_SHOWN[content.format]}, its content is {found}")
    if content.format == "csv":
        _check_no_json(content.file)
    return content


def _check_no_json(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(200).lstrip(b"\xef\xbb\xbf \t\r\n")
    compact = start.replace(b" ", b"").replace(b"\n", b"").replace(b"\r", b"")
    if compact.startswith((b'{"', b'[{"', b"[[", b"{}", b"[]")):
        raise BrokenFileError("it is to be CSV, its content is JSON")


def _members(file: Path, path: str, format: str, scratch: Path) -> Iterator[Content]:
    with _told("zip"), zipfile.ZipFile(file) as archive:
        names = [
            each
            for each in archive.infolist()
            if not each.is_dir()
            and not PurePosixPath(each.filename).name.startswith((".", "_"))
            and not each.filename.startswith("__MACOSX/")
        ]
        if not names:
            raise BrokenFileError("the archive is empty")
        for i, member in enumerate(names):
            told = named_format(member.filename)
            if told not in (None, format):
                raise BrokenFileError(f"its member {member.filename} is no {_SHOWN[format]}")
            target = scratch / f"member{i}"
            with archive.open(member) as source, target.open("wb") as written:
                shutil.copyfileobj(source, written, 1 << 20)
            name = f"{path}!{member.filename}"
            yield _checked(Content(target, name, format), kind_of(target))


@contextmanager
def _opened(file: Path, packed: str) -> Iterator[Any]:
    openers: dict[str, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    if packed in openers:
        with openers[packed](file, "rb") as opened:
            yield opened
        return
    with pa.OSFile(str(file)) as source, pa.CompressedInputStream(source, "zstd") as stream:
        yield io.BufferedReader(_Raw(stream))


class _Raw(io.RawIOBase):
    """An Arrow stream as Python reads one."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.stream.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


@contextmanager
def _told(packing: str) -> Iterator[None]:
    """Broken archives and streams, told alike."""
    failures = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
    try:
        yield
    except (*failures, pa.ArrowException, NotImplementedError) as error:
        raise BrokenFileError(f"the {packing} in it is broken: {error}") from error
