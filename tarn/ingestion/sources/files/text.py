"""Text files in UTF-8, whatever they were written in."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tarn.ingestion.sources.files.broken import BrokenFileError

_BLOCK = 1 << 20
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UNWESTERN = re.compile(
    "[^\\x00-\\x7f\\xa0-\\xff\\u2013-\\u2030\\u20ac\\u2122\\u0152\\u0153\\u0178]"
    "|[\\xfe\\xf0\\xfd\\xde\\xd0\\xdd]|\\xf5(?!e)|[a-z\\xe0-\\xff][\\xc0-\\xde\\u0178]"
    "|[^\\W\\d_][\\xa3\\xb9\\xbf\\xbc\\xbe\\xb1\\xa2\\xa5\\xa7\\xa6\\xa4\\xac]"
    "|[\\xa3\\xb3\\xb9\\xbc\\xbe\\xb1\\xa2\\xa5\\xa6\\xa4\\xac][^\\W\\d_]"
)
"""What text in another encoding looks like when read as cp1252: letters that Western Europe does
not write, capitals within words, signs that touch letters."""
_MOST_ACCENTED = 0.35
"""Share of letters; Greek or Russian read as cp1252 has nothing else."""
_SAMPLE = 1 << 16
_VALID = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+")


def in_utf8(
    file: Path, declared: str | None, scratch: Path, may_guess: bool = True
) -> tuple[Path, str | None]:
    """The file in UTF-8 without mark, and the encoding it was in if nothing in it said so.

    Single bytes that are not UTF-8 are left to the reader. Raises BrokenFileError for text in an
    encoding that cannot be told.
    """
    with file.open("rb") as opened:
        head = opened.read(_BLOCK)
    if declared and codecs.lookup(declared).name not in ("utf-8", "utf-8-sig"):
        return _decoded(file, declared, scratch), None
    if (encoding := _marked(head)) or (encoding := _wide(head)):
        return _decoded(file, encoding, scratch), None
    foreign = _foreign(file) if may_guess and not declared else b""
    if not foreign:
        return file, None
    encoding = _guessed(foreign)
    return _decoded(file, encoding, scratch), encoding


def _marked(head: bytes) -> str | None:
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def _wide(head: bytes) -> str | None:
    """UTF-16 or 32 without mark: text is mostly Latin, so every other byte is 0."""
    even, odd = head[::2], head[1::2]
    if len(head) < 4 or not odd:
        return None
    zeros = even.count(0) / len(even), odd.count(0) / len(odd)
    if zeros[0] > 0.4 and zeros[1] > 0.4:
        return "utf-32-le" if head[0] else "utf-32-be"
    if max(zeros) > 0.4 and min(zeros) < 0.1:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return None


def _foreign(file: Path) -> bytes:
    """Lines that are not UTF-8, as many as a sample holds; none if others show that all is
    meant to be."""
    found = b""
    with file.open("rb") as opened:
        for block in _pieces(opened):
            if block.isascii():
                continue
            try:
                block.decode()
                lines = [block]
            except UnicodeDecodeError:
                lines = block.splitlines(keepends=True)
            for line in lines:
                if _VALID.search(line):
                    return b""
                if not line.isascii() and len(found) < _SAMPLE:
                    found += line
    return found


def _pieces(opened: BinaryIO) -> Iterator[bytes]:
    """Blocks that end with a line."""
    rest = b""
    while block := opened.read(_BLOCK):
        block = rest + block
        end = block.rfind(b"\n") + 1
        rest = block[end:]
        if end:
            yield block[:end]
    yield rest


def _guessed(sample: bytes) -> str:
    """cp1252, where nothing speaks against it; raises BrokenFileError else."""
    from charset_normalizer import from_bytes

    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    letters = [sign for sign in text if sign.isalpha()]
    accented = sum(not sign.isascii() for sign in letters)
    if text and not _UNWESTERN.search(text) and accented <= _MOST_ACCENTED * len(letters):
        return "cp1252"
    best = from_bytes(sample).best()
    guess = f"; it may be {best.encoding}" if best else ""
    raise BrokenFileError(f"it is not in UTF-8{guess}: say csv: {{encoding: …}}")


def _decoded(file: Path, encoding: str, scratch: Path) -> Path:
    """A copy in UTF-8; raises BrokenFileError where bytes do not fit the encoding."""
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / f"{file.name}.utf8"
    try:
        with (
            file.open("r", encoding=encoding, newline="") as text,
            target.open("w", encoding="utf-8", newline="") as written,
        ):
            while block := text.read(_BLOCK):
                written.write(block)
    except UnicodeError as error:
        raise BrokenFileError(f"it is not in {encoding.removesuffix('-sig')}: {error}") from error
    return target
