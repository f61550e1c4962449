"""REST APIs, through dlt's declarative source: pages, retries, rate limits, tokens.

An API's "since" may mean from that moment on or only after it, and rows can share a moment. So
it is asked from just before the highest cursor in the lake, and what comes again is told by its
content.
"""

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from dlt.extract import DltSource
from dlt.sources.helpers.requests import Client
from dlt.sources.rest_api import rest_api_source

from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.rest_api import (
    Endpoint,
    OffsetPaginator,
    PageNumberPaginator,
    RestConnection,
    RestTable,
)
from tarn.ingestion.landed import Landed
from tarn.ingestion.masking import secrets_in
from tarn.ingestion.sources import Extract, Source
from tarn.settings import Settings

_ATTEMPTS = 5
_TIMEOUT_SECONDS = 60


class RestApi(Source):
    """An API; each table is one of its endpoints."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        connection = declared.system.connection
        assert isinstance(connection, RestConnection)
        self.declared, self.connection = declared, connection
        self.secrets = frozenset(secrets_in(connection.model_dump(by_alias=True)))

    def extract(self, table: str, landed: Landed) -> Extract:
        spec = self.declared.system.tables[table]
        since = landed.maximum(spec.cursor) if spec.cursor else None
        if landed.span and (moments := landed.span.moments()):
            since = moments[0]
        return Extract(lambda: self._source(table, since), is_objects=True)

    def _source(self, table: str, since: Any) -> DltSource:
        """The table's resource; the others are there for what it may take from them."""
        config: Any = {
            "client": {**_given(self.connection), "session": _session()},
            "resources": [
                {"name": name, "endpoint": _endpoint(spec, since if name == table else None)}
                for name, spec in self.declared.system.tables.items()
                if isinstance(spec, RestTable)
            ],
        }
        source = rest_api_source(config, name=self.declared.name)
        return source.with_resources(table)


def _session() -> Any:
    """Waits as long as the server asks when it is asked too often, else ever longer."""
    client = Client(
        request_timeout=_TIMEOUT_SECONDS,
        request_max_attempts=_ATTEMPTS,
        request_backoff_factor=0.5,
    )
    return client.session


def _given(spec: RestConnection | Endpoint) -> dict[str, Any]:
    """dlt's spelling of a declaration is ours."""
    config = dict(spec.model_dump(by_alias=True, exclude_none=True))
    if isinstance(spec.paginator, OffsetPaginator | PageNumberPaginator):
        # Left out, dlt would look for a total and end in failure when there is none.
        config["paginator"] = spec.paginator.model_dump()
    return config


def _endpoint(spec: RestTable, since: Any) -> Mapping[str, Any]:
    endpoint: Endpoint = spec.endpoint
    config = _given(endpoint)
    incremental = config.pop("incremental", None)
    if incremental and since is not None:
        config["params"] = {**config["params"], incremental["start_param"]: just_before(since)}
    return config


def just_before(since: Any) -> Any:
    """The moment or number next below, in the form that APIs take."""
    if isinstance(since, datetime):
        return (since - timedelta(seconds=1)).replace(microsecond=0).isoformat() + "Z"
    if isinstance(since, date):
        return (since - timedelta(days=1)).isoformat()
    return since - 1 if isinstance(since, int) else since
