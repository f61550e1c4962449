"""Credentials of a REST API, put into each request at the last moment."""

import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from requests import PreparedRequest, Request, Response  # type: ignore[import-untyped]
from requests.exceptions import HTTPError  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion.declarations.rest_api import (
    ApiKeyAuth,
    Auth,
    BasicAuth,
    BearerAuth,
    ClientCredentialsAuth,
)
from tarn.ingestion.sources.http import address_of

_MARGIN_SECONDS = 30.0
"""A token is renewed so long before it expires, or in the last tenth of its life."""


class Credentials:
    """What a connection's `headers` and `auth` put into a request.

    send delivers a request for a token; learn is told each new token, which is a secret.
    """

    def __init__(
        self,
        auth: Auth | None,
        headers: Mapping[str, str],
        send: Callable[[PreparedRequest], Response],
        where: str,
        learn: Callable[[str], None],
    ) -> None:
        self.auth, self.headers = auth, headers
        self.send, self.where, self.learn = send, where, learn
        self._token: str | None = None
        self._expires_at = 0.0

    def sign(self, request: PreparedRequest) -> None:
        request.headers.update(self.headers)
        auth = self.auth
        if isinstance(auth, BearerAuth):
            request.headers["Authorization"] = f"Bearer {auth.token}"
        elif isinstance(auth, BasicAuth):
            request.headers["Authorization"] = _basic(auth.username, auth.password)
        elif isinstance(auth, ClientCredentialsAuth):
            request.headers["Authorization"] = f"Bearer {self._current_token(auth)}"
        elif isinstance(auth, ApiKeyAuth):
            _put_key(request, auth)

    def renew(self) -> bool:
        """Forget a token that was refused; whether there can be another."""
        self._token = None
        return isinstance(self.auth, ClientCredentialsAuth)

    def _current_token(self, auth: ClientCredentialsAuth) -> str:
        if self._token is None or time.monotonic() >= self._expires_at:
            answer = self._ask(auth)
            lasts = float(answer.get("expires_in") or auth.default_token_expiration)
            self._expires_at = time.monotonic() + lasts - min(_MARGIN_SECONDS, lasts / 10)
            self._token = str(answer["access_token"])
            self.learn(self._token)
        return self._token

    def _ask(self, auth: ClientCredentialsAuth) -> dict[str, Any]:
        form = {"grant_type": "client_credentials", **auth.access_token_request_data}
        headers = {"Accept": "application/json"}
        if auth.credentials_in == "body":
            form |= {"client_id": auth.client_id, "client_secret": auth.client_secret}
        else:
            # RFC 6749, 2.3.1: both are form-encoded first.
            name, secret = quote(auth.client_id, safe=""), quote(auth.client_secret, safe="")
            headers["Authorization"] = _basic(name, secret)
        request = Request("POST", auth.access_token_url, headers=headers, data=form)
        request.register_hook("response", _raise_for_status)
        try:
            answer = self.send(request.prepare()).json()
        except HTTPError as error:
            text = " ".join(error.response.text.split())[:200]
            what = f"{address_of(error)}: no access_token, {error.response.status_code} {text}"
            raise TarnError(what, self.where, "check id, secret and scope") from error
        except ValueError as error:
            raise self._no_token(auth) from error
        if not isinstance(answer, dict) or not answer.get("access_token"):
            raise self._no_token(auth)
        return answer

    def _no_token(self, auth: ClientCredentialsAuth) -> TarnError:
        parts = urlsplit(auth.access_token_url)
        what = f"{parts.scheme}://{parts.netloc}{parts.path}: no access_token in the answer"
        return TarnError(what, self.where, "check access_token_url")


def _raise_for_status(response: Response, *_: Any, **__: Any) -> None:
    if response.status_code >= 400:
        raise HTTPError(response=response)


def _basic(name: str, password: str) -> str:
    return f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"


def _put_key(request: PreparedRequest, auth: ApiKeyAuth) -> None:
    if auth.location == "header":
        request.headers[auth.name] = auth.api_key
    elif auth.location == "cookie":
        others = request.headers.get("Cookie", "").split("; ")
        kept = [each for each in others if each and not each.startswith(f"{auth.name}=")]
        request.headers["Cookie"] = "; ".join([*kept, f"{auth.name}={auth.api_key}"])
    elif auth.name not in parse_qs(urlsplit(request.url).query):
        # An address that the API gave for the next page may hold the key already.
        request.prepare_url(request.url, {auth.name: auth.api_key})
