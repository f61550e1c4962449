"""Files in a folder."""

from typing import Literal

from pydantic import Field

from tarn.ingestion.declarations.base import Name, System, Table


class FilesTable(Table):
    path: str
    """File or glob pattern below the connection's folder: orders/*.parquet. A changed file's
    rows take the place of those it gave before."""
    format: Literal["csv", "json", "parquet"] | None = None
    """Format of the files, if their names do not tell. Values in CSV and text in JSON stay text
    unless `columns` gives a type."""


class FilesSystem(System):
    kind: Literal["files"]
    connection: str
    """Folder, or address of one that fsspec knows."""
    tables: dict[Name, FilesTable] = Field(min_length=1)
