"""Endpoints of a REST API, in dlt's words."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from tarn.ingestion.declarations.base import Name, System, Table
from tarn.strict_yaml import Spec

START, END = "{incremental.start_value}", "{incremental.end_value}"
FORMATS = ("iso", "date", "epoch_seconds", "epoch_milliseconds")
Moment: TypeAlias = str | int | float


class BearerAuth(Spec):
    type: Literal["bearer"]
    token: str


class ApiKeyAuth(Spec):
    type: Literal["api_key"]
    name: str = "Authorization"
    """Name of the header, parameter or cookie."""
    api_key: str
    location: Literal["header", "query", "cookie"] = "header"


class BasicAuth(Spec):
    type: Literal["http_basic"]
    username: str
    password: str


class ClientCredentialsAuth(Spec):
    """OAuth2: a token is fetched when it is first needed, and again when it has expired."""

    type: Literal["oauth2_client_credentials"]
    access_token_url: str
    client_id: str
    client_secret: str
    credentials_in: Literal["body", "basic"] = "body"
    """Whether id and secret are sent as fields of the form or by HTTP basic authentication."""
    access_token_request_data: Mapping[str, str] = {}
    """More fields of the form: scope, audience."""
    default_token_expiration: int = Field(3600, gt=0)
    """Seconds a token lasts if the server does not say."""


class AutoPaginator(Spec):
    """Found out from the first answer: Link header, address or cursor `next`, number of pages."""

    type: Literal["auto"]


class JsonLinkPaginator(Spec):
    type: Literal["json_link"]
    next_url_path: str = "paging.next"
    """JSONPath to the address of the next page in the answer."""


class HeaderLinkPaginator(Spec):
    type: Literal["header_link"]
    links_next_key: str = "next"
    """Relation name in the Link header."""


class HeaderCursorPaginator(Spec):
    type: Literal["header_cursor"]
    cursor_key: str = "next"
    """Header with the mark of the next page."""
    cursor_param: str = "cursor"


class CursorPaginator(Spec):
    type: Literal["cursor"]
    cursor_path: str
    """JSONPath to the mark of the next page in the answer."""
    cursor_param: str | None = None
    cursor_body_path: str | None = None
    """Where the mark goes in the body of a POST, as a dotted path, instead of a parameter."""
    has_more_path: str | None = None
    """JSONPath to true or false: whether there is a next page."""

    @model_validator(mode="after")
    def _goes_somewhere(self) -> "CursorPaginator":
        if (self.cursor_param is None) == (self.cursor_body_path is None):
            raise ValueError("give cursor_param or cursor_body_path")
        return self


class OffsetPaginator(Spec):
    type: Literal["offset"]
    limit: int = Field(gt=0)
    """Rows to ask for per page. If the API gives fewer, the next page begins after those."""
    offset_param: str | None = "offset"
    limit_param: str | None = "limit"
    offset_body_path: str | None = None
    """Where the offset goes in the body of a POST, as a dotted path, instead of a parameter."""
    limit_body_path: str | None = None
    total_path: str | None = None
    """JSONPath to the number of all rows; without it pages are read until one is empty."""
    has_more_path: str | None = None
    """JSONPath to true or false: whether there is a next page."""


class PageNumberPaginator(Spec):
    type: Literal["page_number"]
    base_page: int = 0
    """Number of the first page."""
    page_param: str | None = "page"
    page_body_path: str | None = None
    """Where the number goes in the body of a POST, as a dotted path, instead of a parameter."""
    total_path: str | None = None
    """JSONPath to the number of all pages; without it pages are read until one is empty."""
    has_more_path: str | None = None
    """JSONPath to true or false: whether there is a next page."""


class SinglePage(Spec):
    type: Literal["single_page"]


Auth: TypeAlias = Annotated[
    BearerAuth | ApiKeyAuth | BasicAuth | ClientCredentialsAuth, Field(discriminator="type")
]
Paginator: TypeAlias = Annotated[
    AutoPaginator
    | JsonLinkPaginator
    | HeaderLinkPaginator
    | HeaderCursorPaginator
    | CursorPaginator
    | OffsetPaginator
    | PageNumberPaginator
    | SinglePage,
    Field(discriminator="type"),
]


class RestConnection(Spec):
    base_url: str
    headers: Mapping[str, str] = {}
    """Sent with each request to the server of base_url, and to no other."""
    auth: Auth | None = None
    """Sent to the server of base_url, and to no other."""
    paginator: Paginator = AutoPaginator(type="auto")
    """How to come to the next page."""
    max_requests_per_second: float | None = Field(None, gt=0)
    timeout_seconds: float = Field(60, gt=0)
    """How long the server may be silent before the request is made again."""
    attempts: int = Field(5, ge=1, le=20)
    """How often a request is made that fails by the server's fault or the network's. A 429 is
    met with as much patience as its Retry-After asks for, up to five minutes."""


class Incremental(Spec):
    start_param: str | None = None
    """Parameter that asks for rows from the cursor's highest value on. The value can also be put
    anywhere in path, params, headers and json: {incremental.start_value}."""
    end_param: str | None = None
    """Parameter that asks for rows up to end_value. Also: {incremental.end_value}."""
    initial_value: Moment | None = None
    """Where the first load starts; without it the first load asks for everything."""
    end_value: Moment | None = None
    """Where each load ends; without it, with the moment at which it begins."""
    format: str = "iso"
    """How the API writes a moment: iso, date, epoch_seconds, epoch_milliseconds, or a pattern
    such as %d.%m.%Y. Other cursors are sent as they are."""

    @field_validator("format")
    @classmethod
    def _is_known(cls, form: str) -> str:
        if form not in FORMATS and "%" not in form:
            raise ValueError(
                f"{form!r} is neither {', '.join(FORMATS)} nor a pattern such as %Y%m%d"
            )
        return form


class Endpoint(Spec):
    path: str
    """Below base_url. Another table's field can be used in path, params, headers and json:
    {resources.<table>.<field>}. A brace that is meant as one is written twice."""
    method: Literal["GET", "POST"] = "GET"
    params: Mapping[str, str | int | float | bool] = {}
    """Sent with each request in its address."""
    headers: Mapping[str, str] = {}
    json_body: Mapping[str, Any] | None = Field(None, alias="json")
    """Sent with each request as its body."""
    data_selector: str | None = None
    """JSONPath to the list of rows in the answer; found out if not given. $ takes the answer
    itself, an object as one row."""
    paginator: Paginator | None = None
    """Instead of the connection's."""
    count_path: str | None = None
    """JSONPath to the number of all rows in the answer. A load whose pages hold fewer fails."""
    incremental: Incremental | None = None
    include_from_parent: tuple[str, ...] = ()
    """Fields of the other table's row that each row is given, as _<table>_<field>."""
    ignore: tuple[int, ...] = ()
    """Statuses that mean that there are no rows: 404."""

    @model_validator(mode="after")
    def _has_its_values(self) -> "Endpoint":
        used = set(texts([self.path, self.params, self.headers, self.json_body]))
        for mark in (START, END):
            if any(mark in text for text in used) and not self.incremental:
                raise ValueError(f"{mark} needs incremental")
        start_used = any(START in text for text in used)
        if start_used and self.incremental and self.incremental.initial_value is None:
            raise ValueError(f"{START} needs incremental.initial_value for the first load")
        if self.incremental and not start_used and self.incremental.start_param is None:
            raise ValueError(f"incremental needs start_param, or {START} somewhere")
        if self.json_body is not None and self.method == "GET":
            raise ValueError("json needs method: POST")
        return self


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


def texts(value: Any) -> Iterator[str]:
    """All texts in a value of lists and dictionaries, keys apart."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts(each)
