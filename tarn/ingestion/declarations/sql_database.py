"""Tables of a database."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from tarn.ingestion.declarations.base import Name, System, Table

Pattern: TypeAlias = Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)?$")]
"""`table` of the connection's own schema, or `schema.table`."""


class SqlTable(Table):
    model_config = ConfigDict(json_schema_extra={"type": ["object", "null"]})

    table: str | None = None
    """Name of the table or view in the database, if it differs from the key."""
    db_schema: str | None = Field(None, alias="schema")
    """Schema in the database, if not the connection's own."""
    write: Literal["append", "merge", "replace"] = Field(default_factory=lambda: "replace")
    """append adds rows; merge updates rows by primary_key and adds new ones; replace puts what
    the source holds now in place of everything. Left out: merge if the database keeps a key
    unique, else replace. A merge without primary_key takes the database's key, and one without
    cursor the column that the database's names and types tell to be one."""
    overlap: Annotated[str, Field(pattern=r"^\d+ ?[smhdw]$")] | int | None = None
    """How far before the highest cursor rows are read again, for those that come late: 30s, 15m,
    1h, 2d, 1w, or a number where the cursor counts. What has not changed is not written again.
    Left out: nothing, but 1h for a cursor that was not declared."""

    @property
    def is_open(self) -> bool:
        """Whether the database is to say how the table is written."""
        return "write" not in self.model_fields_set

    @model_validator(mode="before")
    @classmethod
    def _may_say_nothing(cls, data: Any) -> Any:
        return {} if data is None else data

    @model_validator(mode="after")
    def _write_fits(self) -> "SqlTable":
        if self.is_open:
            return self
        if self.write == "replace" and (self.cursor or self.overlap is not None):
            raise ValueError("write: replace reads everything each time; remove the cursor")
        if self.allow_empty and self.write != "replace":
            raise ValueError("allow_empty is for write: replace only")
        return self


class SqlSystem(System):
    kind: Literal["sql_database"]
    connection: str
    """Database address: postgresql://user:password@host/database, mysql://…, sqlite:///path, or
    any other that SQLAlchemy knows."""
    include: tuple[Pattern, ...] = ()
    """Tables and views to load beside those under `tables`, by pattern: `*` for all of the
    connection's own schema, `sales.*`, `*.*` for all schemas. Names are in snake case in the
    lake; of two that would be the same, the one of another schema becomes `schema__table`."""
    exclude: tuple[Pattern, ...] = ()
    """Of those that `include` names, the ones to leave out."""
    tables: dict[Name, SqlTable] = Field(default_factory=dict)
    """Tables that need more said; what is said here counts for a table that `include` finds."""

    @model_validator(mode="after")
    def _names_tables(self) -> "SqlSystem":
        if not self.tables and not self.include:
            raise ValueError("name tables under tables:, or patterns of them under include:")
        if self.exclude and not self.include:
            raise ValueError("exclude leaves out what include finds; there is no include")
        return self
