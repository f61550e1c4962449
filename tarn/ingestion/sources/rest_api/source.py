"""REST APIs, through dlt's declarative source: pages, parents, bodies. Requests are ours
(`http.py`, `rest_auth.py`), and each page is checked (`rest_pages.py`).

An API's "since" may mean from that moment on or only after it, and rows can share a moment. So
it is asked from just before the highest cursor in the lake, and what comes again is told by its
content.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from dlt.extract import DltSource
from dlt.sources.helpers.rest_client.detector import single_entity_path
from dlt.sources.helpers.rest_client.redaction import SENSITIVE_PARAMS, sanitize_url
from dlt.sources.rest_api import rest_api_source
from requests import Request  # type: ignore[import-untyped]
from requests.exceptions import RequestException  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.rest_api import (
    END,
    START,
    ApiKeyAuth,
    AutoPaginator,
    Endpoint,
    Incremental,
    RestConnection,
    RestTable,
    SinglePage,
)
from tarn.ingestion.landed import Landed
from tarn.ingestion.masking import masked, message, secrets_in
from tarn.ingestion.sources import Extract, Offered, Source
from tarn.ingestion.sources.http import Manners, Session, http_failure
from tarn.ingestion.sources.rest_api.auth import Credentials
from tarn.ingestion.sources.rest_api.offering import (
    key_matches,
    operations,
    suggested,
    table_name,
    unread,
)
from tarn.ingestion.sources.rest_api.pages import Listing, Page, Pages
from tarn.settings import Settings
from tarn.storage.clock import now

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_TIMES: Mapping[str, int] = {"epoch_seconds": 1, "epoch_milliseconds": 1000}


class RestApi(Source):
    """An API; each table is one of its endpoints."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        connection = declared.system.connection
        assert isinstance(connection, RestConnection)
        self.declared, self.connection = declared, connection
        endpoints = [spec.endpoint for spec in self._specs().values()]
        self.secrets = frozenset(_secrets(connection, endpoints))
        self.session = self._session(any(endpoint.headers for endpoint in endpoints))

    def extract(self, table: str, landed: Landed) -> Extract:
        spec = self._specs()[table]
        since = landed.maximum(spec.cursor) if spec.cursor else None
        until = None
        if landed.span and (moments := landed.span.moments()):
            since, until = moments
        return Extract(lambda: self._source(self._specs(), table, since, until), is_objects=True)

    def check(self) -> list[str]:
        """What the first page of each endpoint tells."""
        return [self._checked(table, spec) for table, spec in self._specs().items()]

    def offered(self) -> list[Offered]:
        """What an OpenAPI document of the API names, or the endpoints that are declared. What
        answers with no list is no table."""
        paths = self._documented() or {spec.endpoint.path: {} for spec in self._specs().values()}
        if not paths:
            raise TarnError(
                f"{self.connection.base_url} has no OpenAPI document that names its endpoints",
                self.declared.file.where("connection"),
                "name them under tables:",
            )
        return [
            offer
            for path, operation in paths.items()
            if (offer := self._suggested(path, operation)) is not None
        ]

    def _checked(self, table: str, spec: RestTable) -> str:
        try:
            page = self._first_page(self._specs(), table)
            if page is None:
                return f"{table}: answers that there are no rows"
            words = [f"{table}: {page.status}, {len(page.rows):,} rows on the first page"]
            words.append(f"rows at {page.selector}")
            words.append(f"{'no further pages' if page.is_only else 'pages'} by {page.paging}")
            if spec.endpoint.incremental and spec.cursor:
                words.append(self._checked_since(table, spec.cursor, page))
            return "; ".join(words)
        except Exception as failure:
            where = self.declared.file.where("tables", table)
            told = http_failure(failure, where) or failure
            return f"{table}: {message(told, self.secrets)}"

    def _checked_since(self, table: str, cursor: str, page: Page) -> str:
        """Asked from the highest cursor of the first page on, an API gives no lower one."""
        known = [row[key] for row in page.rows for key in row if key_matches(key, cursor)]
        since = max((value for value in known if value is not None), key=_order, default=None)
        if since is None:
            return f"incremental: no row has {cursor}"
        if len(set(map(_order, known))) < 2:
            return f"incremental: cannot tell, all rows have the same {cursor}"
        later = self._first_page(self._specs(), table, since)
        lowest = _order(just_before(since))
        rows = later.rows if later else ()
        early = [
            row
            for row in rows
            for key in row
            if key_matches(key, cursor) and row[key] is not None and _order(row[key]) < lowest
        ]
        return "incremental: the API ignores it" if early else "incremental: works"

    def _suggested(self, path: str, operation: Mapping[str, Any]) -> Offered | None:
        name = table_name(path)
        endpoint = Endpoint.model_validate({"path": path.lstrip("/")})
        try:
            page = self._first_page({name: RestTable(write="replace", endpoint=endpoint)}, name)
        except Exception as failure:
            told = http_failure(failure, path)
            return unread(name, endpoint.path, message(told, self.secrets)) if told else None
        return suggested(name, endpoint.path, operation, page)

    def _documented(self) -> dict[str, Mapping[str, Any]]:
        """What GET says of each path below base_url; the document may be there or at the root."""
        base = self.connection.base_url.rstrip("/")
        prefix = urlsplit(base).path
        for start in dict.fromkeys([base, base.removesuffix(prefix)]):
            document = self._document(f"{start}/openapi.json")
            if document:
                found = operations(document)
                below = prefix if start != base else ""
                return {
                    path.removeprefix(below): told
                    for path, told in found.items()
                    if path.startswith(below)
                }
        return {}

    def _document(self, address: str) -> dict[str, Any] | None:
        try:
            answer = self.session.send(Request("GET", address).prepare()).json()
        except (RequestException, TarnError):
            return None
        return answer if isinstance(answer, dict) and "paths" in answer else None

    def _first_page(
        self, specs: Mapping[str, RestTable], table: str, since: Any = None
    ) -> Page | None:
        """The first page of a table, of its first parent if it has one; None for an answer that
        means no rows. Raises what a load would."""
        seen: list[Page] = []
        source = self._source(specs, table, since, seen=seen)
        for _ in source.resources[table]:
            break
        return seen[-1] if seen else None

    def _specs(self) -> dict[str, RestTable]:
        tables = self.declared.system.tables
        return {name: spec for name, spec in tables.items() if isinstance(spec, RestTable)}

    def _session(self, has_headers: bool) -> Session:
        connection = self.connection
        where = self.declared.file.where("connection", "auth")
        manners = Manners(
            connection.timeout_seconds, connection.attempts, connection.max_requests_per_second
        )
        session = Session(connection.base_url, manners, self.declared.file.where("connection"))
        credentials = Credentials(
            connection.auth,
            connection.headers,
            lambda request: session.persist(request, allow_redirects=False),
            where,
            self._learn,
        )
        session.sign, session.renew = credentials.sign, credentials.renew
        session.is_private = bool(connection.auth or connection.headers or has_headers)
        return session

    def _learn(self, secret: str) -> None:
        self.secrets |= {secret}

    def without_secrets(self, address: str) -> str:
        auth = self.connection.auth
        named = {auth.name} if isinstance(auth, ApiKeyAuth) else set()
        return masked(sanitize_url(address, SENSITIVE_PARAMS | named), self.secrets)

    def _source(
        self,
        specs: Mapping[str, RestTable],
        table: str,
        since: Any,
        until: Any = None,
        seen: list[Page] | None = None,
    ) -> DltSource:
        """The table's resource; the others are there for what it may take from them. With `seen`
        only the first page is read, and noted there."""
        config: Any = {
            "client": {"base_url": self.connection.base_url, "session": self.session},
            "resources": [
                {
                    "name": name,
                    "include_from_parent": list(spec.endpoint.include_from_parent),
                    "endpoint": self._endpoint(
                        name, spec, (since, until) if name == table else None, seen
                    ),
                }
                for name, spec in specs.items()
            ],
        }
        source = rest_api_source(config, name=self.declared.name)
        return source.with_resources(table)

    def _endpoint(
        self,
        name: str,
        spec: RestTable,
        wanted: tuple[Any, Any] | None,
        seen: list[Page] | None,
    ) -> Mapping[str, Any]:
        """How dlt is to ask; wanted are the first and last moment, if it is the table to load."""
        endpoint = spec.endpoint
        config: dict[str, Any] = {
            "path": endpoint.path,
            "method": endpoint.method,
            "params": {key: _spelt(value) for key, value in endpoint.params.items()},
            "headers": dict(endpoint.headers),
            "json": endpoint.json_body,
        }
        if endpoint.incremental:
            config = _between(config, endpoint.incremental, *(wanted or (None, None)))
        listing = Listing(
            endpoint,
            self._paginator(endpoint),
            self.declared.file.where("tables", name, "endpoint"),
            self.without_secrets,
            rejects=wanted is not None,
            only_first=seen is not None,
            seen=seen if seen is not None and wanted else [],
        )
        given = {key: value for key, value in config.items() if value}
        return {**given, "data_selector": "$", "paginator": Pages(listing)}

    def _paginator(self, endpoint: Endpoint) -> Any:
        chosen = endpoint.paginator or self.connection.paginator
        if isinstance(chosen, AutoPaginator) and single_entity_path(endpoint.path):
            return SinglePage(type="single_page")
        return chosen


def _secrets(connection: RestConnection, endpoints: list[Endpoint]) -> Iterator[str]:
    told = connection.model_dump(by_alias=True)
    if connection.auth:
        # An address, for all its name.
        told["auth"].pop("access_token_url", None)
    yield from secrets_in(told)
    yield from connection.headers.values()
    for endpoint in endpoints:
        yield from endpoint.headers.values()
        yield from secrets_in(endpoint.model_dump(by_alias=True))
        for name, value in endpoint.params.items():
            if name.lower() in SENSITIVE_PARAMS:
                yield str(value)


def _spelt(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _between(config: dict[str, Any], spec: Incremental, since: Any, until: Any) -> dict[str, Any]:
    """The request for rows from just before a value on: parameters, and marks replaced."""
    start, end = spec.initial_value, spec.end_value
    if since is not None:
        start = moment(just_before(_day(since) if _is_by_day(spec.format) else since), spec.format)
    if end is None or until is not None:
        until = until or now()
        end = moment(just_after(_day(until) if _is_by_day(spec.format) else until), spec.format)
    params = dict(config["params"])
    if spec.start_param and start is not None:
        params[spec.start_param] = start
    if spec.end_param:
        params[spec.end_param] = end
    filled: dict[str, Any] = _filled({**config, "params": params}, {START: start, END: end})
    return filled


def _filled(value: Any, marks: Mapping[str, Any]) -> Any:
    """A text that is nothing but a mark becomes the mark's value, of its own type."""
    if isinstance(value, Mapping):
        return {key: _filled(each, marks) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, marks) for each in value]
    if isinstance(value, str):
        if value in marks:
            return marks[value]
        for mark, meant in marks.items():
            value = value.replace(mark, str(meant))
    return value


def _order(value: Any) -> Any:
    """By which cursors are compared: moments may be written differently."""
    if not isinstance(value, str):
        return value
    try:
        if _DAY.fullmatch(value):
            return date.fromisoformat(value)
        value = datetime.fromisoformat(value)
    except ValueError:
        return value
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value


def just_before(since: Any) -> Any:
    """The moment or number next below; of text that is no moment, itself."""
    since = _order(since)
    if isinstance(since, datetime):
        return (since - timedelta(seconds=1)).replace(microsecond=0)
    if isinstance(since, date):
        return since - timedelta(days=1)
    if isinstance(since, bool | Decimal) or not isinstance(since, int | float):
        return since
    return since - 1


def just_after(until: date) -> date:
    """The moment or day next above: an API may leave out the end that it is given."""
    if isinstance(until, datetime):
        return until.replace(microsecond=0) + timedelta(seconds=1)
    return until + timedelta(days=1)


def moment(value: Any, form: str) -> Any:
    """A moment (UTC without zone) or day as an API writes it; anything else as it is."""
    if not isinstance(value, date):
        return value
    exact = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    if form in _TIMES:
        return int(exact.replace(tzinfo=UTC).timestamp() * _TIMES[form])
    if form == "date":
        return exact.date().isoformat()
    if form != "iso":
        return exact.strftime(form)
    return value.isoformat() + ("Z" if isinstance(value, datetime) else "")


def _is_by_day(form: str) -> bool:
    """Whether the form has no time: of the day itself some APIs give only what is later."""
    return form == "date" or ("%" in form and not re.search("%[HIMSTRXcfrs]", form))


def _day(value: Any) -> Any:
    value = _order(value)
    return value.date() if isinstance(value, datetime) else value
