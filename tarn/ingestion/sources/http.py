"""HTTP as a load needs it: patient with servers that fail, careful with credentials, and plain
about what went wrong."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from dlt.sources.helpers.requests.session import Session as DltSession
from requests import PreparedRequest, Response  # type: ignore[import-untyped]
from requests.exceptions import (  # type: ignore[import-untyped]
    ChunkedEncodingError,
    ConnectionError,
    ContentDecodingError,
    HTTPError,
    RequestException,
    SSLError,
    Timeout,
)

from tarn.errors import TarnError
from tarn.ingestion.masking import causes

PATIENCE_SECONDS = 300
"""How long one request waits in all for a server that answers 429."""
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0
_TOO_MANY = 429
_HARMLESS = {"accept", "accept-encoding", "connection", "content-type", "host", "user-agent"}
_FIXES = {
    400: "check path and parameters",
    401: "check the credentials",
    403: "ask the owner for access",
    404: "check the path",
    422: "check path and parameters",
    429: "load less often, or ask the owner for more requests",
}


class BrokenAnswerError(RequestException):  # type: ignore[misc]
    """An answer that is cut off. Asked again, the server may give it whole."""


@dataclass
class Manners:
    """How a server is to be treated."""

    timeout_seconds: float
    attempts: int
    requests_per_second: float | None = None
    _next_at: float = 0.0
    _lock: Lock = field(default_factory=Lock)

    def pace(self) -> None:
        """Wait for this request's turn."""
        if self.requests_per_second is None:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next_at)
            self._next_at = turn + 1 / self.requests_per_second
        time.sleep(turn - now)


class Session(DltSession):
    """Sends requests until they are answered or it is plain that they will not be.

    sign is called before each request to the server of home, and for no other: what it puts into
    a request is secret. renew makes it sign otherwise from now on, if it can, after a 401.
    """

    def __init__(
        self,
        home: str,
        manners: Manners,
        where: str,
        sign: Callable[[PreparedRequest], None] = lambda request: None,
        renew: Callable[[], bool] = lambda: False,
        is_private: bool = False,
    ) -> None:
        super().__init__(timeout=manners.timeout_seconds, raise_for_status=False)
        self.home, self.manners, self.where = home, manners, where
        self.sign, self.renew, self.is_private = sign, renew, is_private
        self.good = 0

    def send(self, request: PreparedRequest, **options: Any) -> Response:
        """The answer. Hooks of the request decide which answers are failures by raising."""
        if options.get("allow_redirects") is False:
            return self._send(request, options)
        if not self._is_home(request.url):
            self._refuse_to_leave(request.url)
            return self.persist(request, **options)
        self.sign(request)
        try:
            response = self.persist(request, **options)
        except HTTPError as failure:
            if failure.response.status_code != 401:
                raise
            response = self._once_more(request, failure, options)
        self.good += 1
        return response

    def persist(self, request: PreparedRequest, **options: Any) -> Response:
        """Send as it is, again and again while there is hope."""
        attempt, waited = 1, 0.0
        while True:
            self.manners.pace()
            try:
                return self._send(request, options)
            except RequestException as failure:
                if _status(failure) == _TOO_MANY:
                    wait = self._told_to_wait(failure, attempt)
                    waited += wait
                    self._check_patience(failure, waited)
                elif attempt < self.manners.attempts and _may_heal(failure):
                    wait = _retry_after(failure.response) or _backoff(attempt)
                    wait = min(wait, _LONGEST_WAIT_SECONDS)
                else:
                    raise
            time.sleep(wait)
            attempt += 1

    def rebuild_auth(self, request: PreparedRequest, response: Response) -> None:
        """On a redirect: what is secret goes to the server it is for, and to no other."""
        if self._is_home(request.url):
            self.sign(request)
            return
        for name in [name for name in request.headers if name.lower() not in _HARMLESS]:
            del request.headers[name]

    def _send(self, request: PreparedRequest, options: dict[str, Any]) -> Response:
        return super().send(request, **options)  # type: ignore[no-untyped-call]

    def _is_home(self, url: str) -> bool:
        return not self.should_strip_auth(self.home, url)

    def _refuse_to_leave(self, url: str) -> None:
        if self.is_private:
            raise TarnError(
                f"the next page is at {_server(url)}, not at {_server(self.home)}:"
                " credentials are not sent there",
                self.where,
                "declare that server as base_url if it is the same API, or another paginator",
            )

    def _once_more(
        self, request: PreparedRequest, failure: HTTPError, options: dict[str, Any]
    ) -> Response:
        if self.renew():
            self.sign(request)
            return self.persist(request, **options)
        if not self.good:
            raise failure
        what = f"{address_of(failure)} answered 401 after {self.good} good answers"
        fix = "the credentials have expired in the middle; nothing was written; get some that last"
        raise TarnError(what, self.where, fix) from failure

    def _told_to_wait(self, failure: RequestException, attempt: int) -> float:
        told = _retry_after(failure.response)
        return _backoff(attempt) if told is None else told

    def _check_patience(self, failure: RequestException, waited: float) -> None:
        if waited > PATIENCE_SECONDS:
            raise TarnError(
                f"{address_of(failure)} answers 429 and is to be left alone for"
                f" {waited:,.0f} s, more than {PATIENCE_SECONDS}",
                self.where,
                f"{_FIXES[_TOO_MANY]}; max_requests_per_second keeps below a known limit",
            ) from failure


def http_failure(failure: BaseException, where: str) -> TarnError | None:
    """The failed request among an error's causes, told; None if no request is."""
    error = next((each for each in causes(failure) if isinstance(each, RequestException)), None)
    if error is None:
        return None
    address = address_of(error)
    if isinstance(error, BrokenAnswerError):
        return TarnError(f"{address}: {error}", where, "try again later, or ask the owner")
    if isinstance(error, HTTPError) and error.response is not None:
        code = error.response.status_code
        answer = " ".join(error.response.text.split())[:200]
        what = f"{address} answered {code}: {answer}"
        return TarnError(what, where, _FIXES.get(code, "try again later, or ask the owner"))
    what = f"cannot reach {address}: {_reason(error)}"
    return TarnError(what, where, "check that the server runs and the address is right")


def address_of(error: RequestException) -> str:
    """Without parameters, which may hold keys."""
    url = error.request.url if error.request is not None else ""
    return f"{_server(url)}{urlsplit(url).path}"


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def _reason(error: RequestException) -> str:
    *_, root = causes(error)
    return str(root) or type(root).__name__


def _status(failure: RequestException) -> int | None:
    is_answer = isinstance(failure, HTTPError) and failure.response is not None
    return int(failure.response.status_code) if is_answer else None


def _may_heal(failure: RequestException) -> bool:
    """By waiting: the server's own failures and the network's."""
    if (status := _status(failure)) is not None:
        return status >= 500 or status == 408
    passing = ConnectionError | Timeout | ChunkedEncodingError | ContentDecodingError
    return isinstance(failure, passing | BrokenAnswerError) and not isinstance(failure, SSLError)


def _backoff(attempt: int) -> float:
    return min(_FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1), _LONGEST_WAIT_SECONDS)


def _retry_after(response: Response | None) -> float | None:
    """Seconds that the header asks to wait, given as such or as a date; None if it does not."""
    told = response.headers.get("retry-after", "") if response is not None else ""
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", told):
        return float(told)
    try:
        return max(parsedate_to_datetime(told).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
