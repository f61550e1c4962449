"""Endpoints of a REST API, in dlt's words."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from tarn.ingestion.declarations.base import Name, System, Table
from tarn.strict_yaml import Spec


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


class RestSystem(System):
    kind: Literal["rest_api"]
    connection: RestConnection
    tables: dict[Name, RestTable] = Field(min_length=1)
