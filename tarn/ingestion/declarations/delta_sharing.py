"""Tables shared by the Delta Sharing protocol."""

from typing import Literal

from pydantic import Field

from tarn.ingestion.declarations.base import Name, System, Table


class SharingTable(Table):
    share: str
    shared_schema: str = Field(alias="schema")
    table: str | None = None
    """Name of the shared table, if it differs from the key."""


class SharingSystem(System):
    kind: Literal["delta_sharing"]
    connection: str
    """Path of a Delta Sharing profile file."""
    tables: dict[Name, SharingTable] = Field(min_length=1)
