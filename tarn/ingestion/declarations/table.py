"""Delta, Iceberg and Hudi tables that others keep."""

from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from tarn.ingestion.declarations.base import Name, System, Table


class ForeignTable(Table):
    path: str | None = None
    """Folder of the table below the connection's, or an Iceberg table's metadata.json, if its name
    differs from the key."""
    format: Literal["delta", "iceberg", "hudi"] | None = None
    """Found out from the folder if not given."""
    version: int | None = None
    """Read this version for ever: a Delta version, an Iceberg snapshot, a Hudi instant. Without it
    the latest one is read whenever there is a new one."""
    as_of: datetime | None = None
    """Read for ever the version that was the latest at this time; UTC unless it says otherwise."""

    @model_validator(mode="after")
    def _one_version(self) -> "ForeignTable":
        if self.version is not None and self.as_of is not None:
            raise ValueError("version and as_of both name one version: keep one of them")
        return self


class TableSystem(System):
    kind: Literal["table"]
    connection: str
    """Folder of the tables: a path, or s3://bucket/folder."""
    tables: dict[Name, ForeignTable] = Field(min_length=1)
