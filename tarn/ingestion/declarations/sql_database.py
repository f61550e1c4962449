"""Tables of a database."""

from typing import Literal

from pydantic import Field

from tarn.ingestion.declarations.base import Name, System, Table


class SqlTable(Table):
    table: str | None = None
    """Name of the table or view in the database, if it differs from the key."""
    db_schema: str | None = Field(None, alias="schema")
    """Schema in the database, if not the connection's own."""


class SqlSystem(System):
    kind: Literal["sql_database"]
    connection: str
    """Database address: postgresql://user:password@host/database, sqlite:///path, or any other
    that SQLAlchemy knows."""
    tables: dict[Name, SqlTable] = Field(min_length=1)
