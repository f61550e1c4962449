"""Files in a folder."""

import codecs
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tarn.ingestion.declarations.base import Name, System, Table
from tarn.strict_yaml import Spec


class Csv(Spec):
    delimiter: str | None = Field(default=None, min_length=1, max_length=8)
    """What separates fields."""
    quote: str | None = Field(default=None, max_length=1)
    """What fields may stand in. Empty where nothing is quoted."""
    escape: Literal["", "\\"] | None = None
    """What a quote within quotes stands behind; empty where it is doubled."""
    encoding: str | None = None
    """How characters are written, such as cp1252."""
    header_row: int | None = Field(default=None, ge=1)
    """Line of the header, from 1. What stands above it is left out."""
    columns: tuple[str, ...] = ()
    """Names of all columns in order, for files without header; with header_row in its place."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str | None) -> str | None:
        try:
            codecs.lookup(encoding or "utf-8")
        except LookupError as error:
            raise ValueError(f"unknown encoding {encoding!r}") from error
        return encoding


class Excel(Spec):
    sheet: str | Annotated[int, Field(ge=1)] = 1
    """Name of the sheet, or its number from 1."""
    header_row: int | None = Field(default=None, ge=1)
    """Row of the header, from 1."""


class FilesTable(Table):
    path: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """File or glob pattern below the connection's folder, or several: orders/**/*.parquet. A
    changed file's rows take the place of those it gave before."""
    format: Literal["csv", "json", "parquet", "excel", "avro"] | None = None
    """Format of the files, if their names do not tell. Values in CSV and text in JSON stay text
    unless `columns` gives a type."""
    csv: Csv = Csv()
    """What to know of CSV, TSV and the like. What is not said is found out."""
    excel: Excel = Excel()
    """Where in a workbook the table is."""
    wait_for: str | None = None
    """Name of a file such as _SUCCESS: files of a folder are read once it stands beside them."""

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @model_validator(mode="after")
    def _dialect_fits(self) -> "FilesTable":
        for key, format in (("csv", "csv"), ("excel", "excel")):
            if key in self.model_fields_set and self.format not in (None, format):
                raise ValueError(f"{key} is for files of format {format}")
        return self


class FilesSystem(System):
    kind: Literal["files"]
    connection: str
    """Folder, or address of one: s3://bucket/folder, sftp://user@host/folder,
    https://host/folder."""
    tables: dict[Name, FilesTable] = Field(min_length=1)
