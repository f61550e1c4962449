"""Tables of a database."""

from typing import Literal

from pydantic import Field, model_validator

from tarn.ingestion.declarations.base import Name, System, Table


class SqlTable(Table):
    table: str | None = None
    """Name of the table or view in the database, if it differs from the key."""
    db_schema: str | None = Field(None, alias="schema")
    """Schema in the database, if not the connection's own."""
    deletes: Literal["hard", "soft"] = "hard"
    """With mode: cdc, a row that the source deletes is deleted from the lake too (hard), or kept
    as it was with the time in `_deleted_at` (soft)."""


class SqlSystem(System):
    kind: Literal["sql_database"]
    connection: str
    """Database address: postgresql://user:password@host/database, sqlite:///path, or any other
    that SQLAlchemy knows."""
    mode: Literal["query", "cdc"] = "query"
    """Tables are asked for what is new (query), or followed by the database's log (cdc, PostgreSQL
    only): each insert, update and delete, without asking the tables."""
    tables: dict[Name, SqlTable] = Field(min_length=1)

    @model_validator(mode="after")
    def _mode_fits(self) -> "SqlSystem":
        for name, table in self.tables.items():
            if self.mode == "query" and "deletes" in table.model_fields_set:
                raise ValueError(f"tables.{name}.deletes needs mode: cdc")
            if self.mode == "cdc" and (table.write != "merge" or table.cursor):
                raise ValueError(f"mode: cdc needs write: merge and no cursor (tables.{name})")
        return self
