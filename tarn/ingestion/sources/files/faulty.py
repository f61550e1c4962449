"""Faulty cells of an .xlsx, which its reader gives as empty ones: #DIV/0! and its like.

Those of .xls and .xlsb cannot be told from empty ones.
"""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def faulty_cells(file: Path, sheet: int) -> Iterator[tuple[int, int, str]]:
    """Row and column, from 0, and text of each faulty cell of a sheet by its number from 0."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if "xl/workbook.xml" not in archive.namelist():
            return
        data = archive.read(_part(archive, sheet))
    if not re.search(rb"""\bt=["']e["']""", data):
        return
    for nth, row in enumerate(ElementTree.fromstring(data).iter(f"{_MAIN}row")):
        at = int(row.get("r", nth + 1)) - 1
        for i, cell in enumerate(row.iter(f"{_MAIN}c")):
            if cell.get("t") == "e":
                column = _column(cell.get("r", "")) if cell.get("r") else i
                yield at, column, cell.findtext(f"{_MAIN}v") or "#N/A"


def _part(archive: zipfile.ZipFile, sheet: int) -> str:
    """Name of the part that holds a sheet."""
    book = ElementTree.fromstring(archive.read("xl/workbook.xml"))
    relation = list(book.iter(f"{_MAIN}sheet"))[sheet].get(_RELATION)
    relations = ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
    target = next(each.get("Target", "") for each in relations if each.get("Id") == relation)
    return posixpath.normpath(posixpath.join("xl", target)).lstrip("/")


def _column(reference: str) -> int:
    """AB12 is in column 27, from 0."""
    number = 0
    for letter in re.sub(r"\d", "", reference):
        number = number * 26 + ord(letter.upper()) - 64
    return number - 1
