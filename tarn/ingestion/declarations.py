"""What `ingestion/<system>.yml` may say: one upstream system, how to reach it, its tables.

A key that is accepted does what its description says. `${NAME}` and `${NAME:-default}` stand
for variables in any text, and are looked up when the system is loaded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from croniter import croniter  # type: ignore[import-untyped]
from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from tarn.errors import TarnError
from tarn.ingestion.types import TYPE_PATTERN, named
from tarn.settings import Settings
from tarn.strict_yaml import Spec, YamlFile, nearest, parse, read

FOLDER = "ingestion"
SCHEMA_FILE = "schema.json"
_RESERVED = ("_load_id", "_loaded_at", "_source_file")

Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _type_name(name: str) -> str:
    named(name)
    return name


ColumnType: TypeAlias = Annotated[
    str, AfterValidator(_type_name), WithJsonSchema({"type": "string", "pattern": TYPE_PATTERN})
]


class Owner(Spec):
    name: str
    """Team or person who answers for the system."""
    email: str


class Contract(Spec):
    columns: Literal["evolve", "freeze", "discard"] = "evolve"
    """A column the table lacks is added (evolve), stops the load (freeze) or is left out
    (discard). Freeze also stops the load when a column of the table is no longer delivered."""
    types: Literal["freeze", "widen"] = "freeze"
    """A changed type stops the load (freeze), or the table takes it where no value can be lost
    (widen)."""
    required: tuple[str, ...] = ()
    """Columns that must be delivered; a row with a null in one goes to quarantine."""


class Table(Spec):
    description: str | None = None
    """What one row is."""
    primary_key: tuple[str, ...] = ()
    """Columns that tell rows apart. Merge updates by them; append does not add a key twice. Of
    rows with the same key in one load the one with the highest cursor is kept, else the last."""
    cursor: str | None = None
    """Column that grows whenever a row is added or changed. A load asks the source for rows from
    the highest value in the lake on, where the source can be asked."""
    write: Literal["append", "merge", "replace"]
    """append adds rows; merge updates rows by primary_key and adds new ones; replace puts what
    the source holds now in place of everything."""
    partition_by: tuple[str, ...] = ()
    """Columns by whose values the table's files are kept apart."""
    columns: Mapping[str, ColumnType] = {}
    """Types of columns, for sources that deliver text. A row with another value goes to
    quarantine."""
    contract: Contract = Contract()
    rules: tuple[str, ...] = ()
    """Conditions in SQL (DuckDB's). A row for which one is false goes to quarantine."""
    allow_empty: bool = False
    """Let an empty source empty a table that is written by replace."""

    @model_validator(mode="after")
    def _write_fits(self) -> "Table":
        if self.write == "merge" and not self.primary_key:
            raise ValueError("write: merge needs a primary_key")
        if self.write == "replace" and self.cursor:
            raise ValueError("write: replace reads everything each time; remove the cursor")
        if self.allow_empty and self.write != "replace":
            raise ValueError("allow_empty is for write: replace only")
        if taken := set(self.columns) & set(_RESERVED):
            raise ValueError(f"{', '.join(sorted(taken))}: Tarn's own column")
        return self


class SqlTable(Table):
    table: str | None = None
    """Name of the table or view in the database, if it differs from the key."""
    db_schema: str | None = Field(None, alias="schema")
    """Schema in the database, if not the connection's own."""


class FilesTable(Table):
    path: str
    """File or glob pattern below the connection's folder: orders/*.parquet. A changed file's
    rows take the place of those it gave before."""
    format: Literal["csv", "json", "parquet"] | None = None
    """Format of the files, if their names do not tell. Values in CSV and text in JSON stay text
    unless `columns` gives a type."""


class BearerAuth(Spec):
    type: Literal["bearer"]
    token: str


class ApiKeyAuth(Spec):
    type: Literal["api_key"]
    name: str = "Authorization"
    """Name of the header or parameter."""
    api_key: str
    location: Literal["header", "query"] = "header"


class BasicAuth(Spec):
    type: Literal["http_basic"]
    username: str
    password: str


class JsonLinkPaginator(Spec):
    type: Literal["json_link"]
    next_url_path: str = "paging.next"
    """JSONPath to the address of the next page in the answer."""


class HeaderLinkPaginator(Spec):
    type: Literal["header_link"]
    links_next_key: str = "next"
    """Relation name in the Link header."""


class CursorPaginator(Spec):
    type: Literal["cursor"]
    cursor_path: str
    """JSONPath to the mark of the next page in the answer."""
    cursor_param: str


class OffsetPaginator(Spec):
    type: Literal["offset"]
    limit: int
    """Rows per page."""
    offset_param: str = "offset"
    limit_param: str = "limit"
    total_path: str | None = None
    """JSONPath to the number of all rows; without it pages are read until one is empty."""


class PageNumberPaginator(Spec):
    type: Literal["page_number"]
    base_page: int = 0
    """Number of the first page."""
    page_param: str = "page"
    total_path: str | None = None
    """JSONPath to the number of all pages; without it pages are read until one is empty."""


class SinglePage(Spec):
    type: Literal["single_page"]


Auth: TypeAlias = Annotated[BearerAuth | ApiKeyAuth | BasicAuth, Field(discriminator="type")]
Paginator: TypeAlias = Annotated[
    JsonLinkPaginator
    | HeaderLinkPaginator
    | CursorPaginator
    | OffsetPaginator
    | PageNumberPaginator
    | SinglePage,
    Field(discriminator="type"),
]


class RestConnection(Spec):
    base_url: str
    headers: Mapping[str, str] = {}
    """Sent with each request."""
    auth: Auth | None = None
    paginator: Paginator | None = None
    """How to come to the next page; found out from the answers if not given."""


class Incremental(Spec):
    start_param: str
    """Parameter that asks for rows from the cursor's highest value on."""


class Endpoint(Spec):
    path: str
    params: Mapping[str, str | int | float | bool] = {}
    """Sent with each request. Another table's field can be used: {resources.<table>.<field>}."""
    data_selector: str | None = None
    """JSONPath to the list of rows in the answer; found out if not given."""
    paginator: Paginator | None = None
    """Instead of the connection's."""
    incremental: Incremental | None = None


class RestTable(Table):
    endpoint: Endpoint

    @model_validator(mode="after")
    def _incremental_has_cursor(self) -> "RestTable":
        if self.endpoint.incremental and not self.cursor:
            raise ValueError("endpoint.incremental needs a cursor")
        return self


class SharingTable(Table):
    share: str
    shared_schema: str = Field(alias="schema")
    table: str | None = None
    """Name of the shared table, if it differs from the key."""


class System(Spec):
    system: Name
    """Name of the system, and of its file. Its tables land in `raw_<system>`."""
    description: str
    owner: Owner
    schedule: str | None = None
    """When the system is to be loaded, as a cron expression."""

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, schedule: str | None) -> str | None:
        if schedule is not None and not croniter.is_valid(schedule):
            raise ValueError(f'{schedule!r} is not a cron expression such as "0 2 * * *"')
        return schedule


class SqlSystem(System):
    kind: Literal["sql_database"]
    connection: str
    """Database address: postgresql://user:password@host/database, sqlite:///path, or any other
    that SQLAlchemy knows."""
    tables: dict[Name, SqlTable] = Field(min_length=1)


class FilesSystem(System):
    kind: Literal["files"]
    connection: str
    """Folder, or address of one that fsspec knows."""
    tables: dict[Name, FilesTable] = Field(min_length=1)


class RestSystem(System):
    kind: Literal["rest_api"]
    connection: RestConnection
    tables: dict[Name, RestTable] = Field(min_length=1)


class SharingSystem(System):
    kind: Literal["delta_sharing"]
    connection: str
    """Path of a Delta Sharing profile file."""
    tables: dict[Name, SharingTable] = Field(min_length=1)


AnySystem: TypeAlias = SqlSystem | FilesSystem | RestSystem | SharingSystem
AnyTable: TypeAlias = SqlTable | FilesTable | RestTable | SharingTable
KINDS: dict[str, type[AnySystem]] = {
    "sql_database": SqlSystem,
    "files": FilesSystem,
    "rest_api": RestSystem,
    "delta_sharing": SharingSystem,
}


@dataclass(frozen=True)
class Declared:
    """A system and the file that declares it."""

    system: AnySystem
    file: YamlFile

    @property
    def name(self) -> str:
        return self.system.system

    def resolved(self, settings: Settings) -> "Declared":
        """With the values of its variables; raises TarnError for a missing one, by line."""
        data = _expanded(self.file, self.file.data, (), settings)
        file = YamlFile(self.file.name, data, self.file.lines)
        return Declared(parse(file, type(self.system)), file)


def declared(folder: Path, systems: Sequence[str] = ()) -> list[Declared]:
    """The systems declared in a folder, or those named; raises TarnError for any mistake."""
    files = {path.stem: path for path in sorted(folder.glob("*.yml"))}
    if not files:
        raise TarnError("no systems are declared", str(folder), "add a <system>.yml")
    for name in systems:
        if name not in files:
            raise TarnError(f"no system {name!r}{nearest(name, list(files))}", str(folder))
    read_ones: list[Declared] = []
    mistakes: list[str] = []
    for name in dict.fromkeys(systems) if systems else files:
        try:
            read_ones.append(declare(files[name]))
        except TarnError as error:
            mistakes.append(str(error))
    if mistakes:
        raise TarnError("\n".join(mistakes))
    return read_ones


def declare(path: Path) -> Declared:
    """One file, checked."""
    file = read(path, f"{path.parent.name}/{path.name}")
    kind = file.data.get("kind") if isinstance(file.data, dict) else None
    if kind is None:
        raise TarnError(f"key 'kind' is missing{nearest('', list(KINDS))}", file.where())
    if kind not in KINDS:
        raise TarnError(
            f"unknown kind {kind!r}{nearest(str(kind), list(KINDS))}", file.where("kind")
        )
    system = parse(file, KINDS[kind])
    if system.system != path.stem:
        raise TarnError(
            f"system {system.system!r} is declared in {path.name}",
            file.where("system"),
            f"call the file {system.system}.yml",
        )
    return Declared(system, file)


def schema_text() -> str:
    """The JSON Schema of a declaration, by which editors complete and check it."""
    kinds = Annotated[AnySystem, Field(discriminator="kind")]
    schema = TypeAdapter[Any](kinds).json_schema(by_alias=True)
    schema["title"] = "A source system of a Tarn project"
    return json.dumps(schema, indent=2) + "\n"


def _expanded(file: YamlFile, value: Any, at: tuple[str | int, ...], settings: Settings) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(file, each, (*at, key), settings) for key, each in value.items()}
    if isinstance(value, list):
        return [_expanded(file, each, (*at, i), settings) for i, each in enumerate(value)]
    return settings.expand(value, file.where(*at)) if isinstance(value, str) else value
