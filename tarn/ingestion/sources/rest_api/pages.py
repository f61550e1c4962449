"""Pages of a REST API, each checked before its rows are believed.

dlt walks from page to page and takes what it finds. An API in trouble answers 200 with a login
page, half a list, the same page for ever, or an error where rows should be: all of that is told
here, so that a load either has every row or fails.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from dlt.common import jsonpath
from dlt.sources.helpers.rest_client.detector import (
    RECORD_KEY_PATTERNS,
    PaginatorFactory,
    find_all_lists,
)
from dlt.sources.helpers.rest_client.exceptions import IgnoreResponseException
from dlt.sources.helpers.rest_client.paginators import (
    BasePaginator,
    OffsetPaginator,
    PageNumberPaginator,
    SinglePagePaginator,
)
from dlt.sources.rest_api.config_setup import PAGINATOR_MAP, create_paginator
from requests import Request, Response  # type: ignore[import-untyped]
from requests.exceptions import HTTPError  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion.declarations import rest_api as declare
from tarn.ingestion.landed import PLACE
from tarn.ingestion.sources import Rejected
from tarn.ingestion.sources.http import BrokenAnswerError
from tarn.ingestion.strict_json import exact_fraction
from tarn.ingestion.types import plain

_EMPTY_PAGES = 1000
"""So many in a row are an API that goes round in circles."""
_ERROR_KEYS = {"error", "errors", "fault", "exception"}
_BESIDE_ERRORS = {*_ERROR_KEYS, "message", "status", "code", "detail", "details", "success", "ok"}
_DENIED = ("success", "ok")
_MORE = re.compile(r"has_?(more|next|next_?page)|more", re.IGNORECASE)
_TOTAL = re.compile(r"(total_?)?(count|results|rows|items|records)|total", re.IGNORECASE)
_PAGE = re.compile(r"(current_?)?page(_?number)?", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """What is known of a page that was read."""

    address: str
    """Without secrets."""
    status: int
    rows: Sequence[Any]
    selector: str
    paginator: BasePaginator
    answer: Any

    @property
    def is_only(self) -> bool:
        return not self.paginator.has_next_page

    @property
    def paging(self) -> str:
        """How further pages are come by, in YAML's words."""
        names = {kind: name for name, kind in PAGINATOR_MAP.items() if name != "json_response"}
        kinds = (names[kind] for kind in type(self.paginator).__mro__ if kind in names)
        return next(kinds)


@dataclass(frozen=True)
class Listing:
    """How the pages of one endpoint are to be read."""

    endpoint: declare.Endpoint
    paginator: declare.Paginator
    where: str
    without_secrets: Callable[[str], str]
    rejects: bool = True
    """Give what is no object as Rejected; otherwise leave it out."""
    only_first: bool = False
    seen: list[Page] = field(default_factory=list)
    """The first page of each listing is noted here."""

    @property
    def takes_one(self) -> bool:
        """Whether an object may stand where a list of rows does: it is then one row."""
        return self.endpoint.data_selector == "$" or isinstance(self.paginator, declare.SinglePage)


class Pages(BasePaginator):
    """A paginator of dlt's, watched. Each walk along the pages of a listing needs its own."""

    def __init__(self, listing: Listing) -> None:
        super().__init__()
        self.listing = listing
        self.inner: BasePaginator | None = None
        self.number = 0
        self.rows = 0
        self._begin()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pages":
        return Pages(self.listing)

    @property
    def has_next_page(self) -> bool:
        return not self.listing.only_first and (self.inner is None or self.inner.has_next_page)

    def init_request(self, request: Request) -> None:
        self._begin()
        request.hooks["response"] = [self._answered]
        if self.inner is not None:
            self.inner.init_request(request)
        self._check_new(request)

    def update_state(self, response: Response, data: list[Any] | None = None) -> None:
        """Replace the data by rows that tell their place."""
        assert data is not None
        self.number += 1
        rows, selector = self._rows()
        if self.inner is None:
            self.inner = _found(response, rows)
        self._check_not_repeated(rows)
        self._walk_on(response, rows)
        self.rows += len(rows)
        address = self.listing.without_secrets(str(response.url))
        if self.number == 1:
            status = response.status_code
            page = Page(address, status, rows, selector, self.inner, self._answer)
            self.listing.seen.append(page)
        self._check_count()
        data[:] = self._placed(rows, f"{address} page {self.number}")

    def update_request(self, request: Request) -> None:
        if self.inner is not None and self.has_next_page:
            self.inner.update_request(request)
            self._check_new(request)

    def _begin(self) -> None:
        self.inner = made(self.listing.paginator)
        self.number = self.rows = self._empty = 0
        self._selector = self.listing.endpoint.data_selector
        self._told: list[int] = []
        self._contents: dict[bytes, int] = {}
        self._requests: set[str] = set()
        self._answer: Any = None

    def _fail(self, what: str, fix: str) -> TarnError:
        page = f"page {self.number}: " if self.number else ""
        return TarnError(
            self.listing.without_secrets(page + what), self.listing.where, f"nothing written; {fix}"
        )

    def _answered(self, response: Response, *_: Any, **__: Any) -> None:
        """Called for each answer, also of those that are asked for again."""
        if response.is_redirect:
            return
        no_content = response.status_code == 204
        if no_content or response.status_code in self.listing.endpoint.ignore:
            self._check_may_end()
            raise IgnoreResponseException
        if response.status_code >= 400:
            raise HTTPError(response=response)
        self._answer = self._parsed(response)

    def _check_may_end(self) -> None:
        """No rows instead of a further page is the end only where nobody said there is one."""
        if self.number and not isinstance(self.inner, OffsetPaginator | PageNumberPaginator):
            what = f"the page after page {self.number} is not there"
            raise self._fail(what, "ask the owner of the API")

    def _parsed(self, response: Response) -> Any:
        text = response.content.strip()
        kind = response.headers.get("content-type", "no content type")
        if text[:1] == b"<":
            started = plain(" ".join(response.text.split()))
            what = f"{kind} instead of JSON: {started}"
            raise self._fail(what, "a login page or a proxy? check address and credentials")
        if not text:
            raise BrokenAnswerError("answered nothing", response=response)
        try:
            return response.json(parse_float=exact_fraction)
        except ValueError as error:
            if text[:1] not in b'[{"' and "json" not in kind:
                what = f"{kind} instead of JSON: {plain(response.text)}"
                raise self._fail(what, "check the path") from error
            what = f"answered JSON that is cut off after {len(text):,} bytes"
            raise BrokenAnswerError(what, response=response) from error

    def _rows(self) -> tuple[list[Any], str]:
        """The rows in the answer, and where they stand in it."""
        self._check_no_error()
        answer = self._answer
        if self._selector is None:
            self._selector = self._find_list(answer)
        found = answer if self._selector == "$" else self._select(answer, self._selector)
        if found is None:
            found = []
        if isinstance(found, dict) and self.listing.takes_one:
            found = [found] if found else []
        if not isinstance(found, list):
            at = "" if self._selector == "$" else f" at {self._selector}"
            what = f"{_kind(found)} where a list of rows was expected{at}: {plain(found)}"
            raise self._fail(what, "data_selector says where the rows are; $ takes one object")
        return found, self._selector

    def _check_no_error(self) -> None:
        answer = self._answer
        if not isinstance(answer, dict) or (
            self._selector == "$" and not set(answer) <= _BESIDE_ERRORS
        ):
            return
        told = [value for key, value in answer.items() if key.lower() in _ERROR_KEYS and value]
        denied = [key for key in _DENIED if answer.get(key) is False]
        if told or denied:
            text = plain(json.dumps(told[0] if told else answer, ensure_ascii=False))
            raise self._fail(f"an error with status 200: {text}", "ask the owner of the API")

    def _select(self, answer: Any, selector: str) -> Any:
        values = jsonpath.find_values(selector, answer)
        is_pattern = "*" in selector or "?" in selector or ".." in selector
        if is_pattern and (values or not selector.endswith("[*]")):
            return values[0] if len(values) == 1 and isinstance(values[0], list) else values
        if is_pattern:
            return [] if self._select(answer, selector.removesuffix("[*]")) == [] else None
        if not values:
            keys = ", ".join(answer) if isinstance(answer, dict) else _kind(answer)
            what = f"nothing at {selector}; the answer has {plain(keys) or 'no keys'}"
            raise self._fail(what, "data_selector says where the rows are")
        return values[0]

    def _find_list(self, answer: Any) -> str:
        """Where the list of objects is; raises TarnError unless it is plain."""
        if not isinstance(answer, dict) or self.listing.takes_one:
            return "$"
        lists = [
            path
            for path, values in find_all_lists(answer, result=[]) or []
            if all(isinstance(value, dict) for value in values)
        ]
        names = {*RECORD_KEY_PATTERNS, self.listing.endpoint.path.rstrip("/").rpartition("/")[2]}
        lists = [path for path in lists if path[-1] in names] or lists
        lists = [path for path in lists if len(path) == min(map(len, lists))]
        if not lists:
            return "$"
        if len(lists) > 1:
            shown = ", ".join(".".join(path) for path in lists)
            raise self._fail(f"several lists in the answer: {shown}", "choose by data_selector")
        return ".".join(lists[0])

    def _check_not_repeated(self, rows: Sequence[Any]) -> None:
        self._empty = 0 if rows else self._empty + 1
        if self._empty > _EMPTY_PAGES:
            what = f"{_EMPTY_PAGES:,} empty pages, and still one more to come"
            raise self._fail(what, "check the paginator")
        if not rows:
            return
        text = json.dumps(rows, sort_keys=True, default=str)
        mark = blake2b(text.encode(), digest_size=16).digest()
        before = self._contents.setdefault(mark, self.number)
        if before != self.number:
            raise self._fail(
                f"the same rows as page {before}: the API does not advance",
                "check the paginator's parameter; paginator: {type: single_page} if there is"
                " only one page",
            )

    def _check_new(self, request: Request) -> None:
        """The same request again would go on for ever."""
        mark = json.dumps([request.url, request.params, request.json], default=str)
        if mark in self._requests:
            what = "the mark of the next page is one that was followed before"
            raise self._fail(f"{what}: the API does not advance", "check the paginator")
        self._requests.add(mark)

    def _walk_on(self, response: Response, rows: list[Any]) -> None:
        assert self.inner is not None
        try:
            self.inner.update_state(response, rows)
        except ValueError as error:
            what = f"the paginator found no way on: {plain(error)}"
            raise self._fail(what, "check its paths") from error
        if self.has_next_page or self.listing.only_first:
            return
        if self._selector == "$":
            return
        is_guessed = self.listing.paginator.type == "auto"
        told = _more(self._answer, self.rows + len(rows) if is_guessed else None)
        if told and not isinstance(self.inner, OffsetPaginator | PageNumberPaginator):
            fix = "declare the paginator; {type: single_page} if this is all"
            raise self._fail(f"the API tells of more rows ({told}), but not how to get them", fix)

    def _check_count(self) -> None:
        """Rows that the API counts must be in its pages. Of a count that changes while pages are
        read the lowest holds."""
        path = self.listing.endpoint.count_path
        if path is None and isinstance(self.listing.paginator, declare.OffsetPaginator):
            path = self.listing.paginator.total_path
        if path is None:
            return
        values = jsonpath.find_values(path, self._answer)
        if not values or not str(values[0]).isdecimal():
            raise self._fail(f"no number of rows at {path}", "check count_path")
        self._told.append(int(values[0]))
        if not self.has_next_page and not self.listing.only_first and self.rows < min(self._told):
            what = f"the API counts {min(self._told):,} rows, its pages held {self.rows:,}"
            raise self._fail(what, "load again; if it stays, check the paginator and its limit")

    def _placed(self, rows: Sequence[Any], place: str) -> list[Any]:
        """The rows as objects; a list of nothing but plain values is one column."""
        if rows and not any(isinstance(row, dict | list) or row is None for row in rows):
            return [{"value": row, PLACE: place} for row in rows]
        placed: list[Any] = []
        for row in rows:
            if isinstance(row, dict):
                placed.append({**row, PLACE: place})
            elif self.listing.rejects:
                reason = f"{_kind(row)} where an object was expected"
                placed.append(Rejected({"value": row}, reason, place))
        return placed[:1] if self.listing.only_first and not self.listing.rejects else placed


class _Offset(OffsetPaginator):
    """Goes on after the rows that came. By its limit it would jump over those that an API keeps
    back which gives fewer at a time."""

    def update_state(self, response: Response, data: list[Any] | None = None) -> None:
        self.value_step = len(data or ())
        super().update_state(response, data)


def made(spec: declare.Paginator) -> BasePaginator | None:
    """dlt's paginator; None for one that the first answer tells."""
    config = {key: value for key, value in spec.model_dump().items() if key != "type"}
    if isinstance(spec, declare.OffsetPaginator):
        return _Offset(**_either(config, "offset", "limit"))
    if isinstance(spec, declare.PageNumberPaginator):
        return PageNumberPaginator(**_either(config, "page"))
    given = {key: value for key, value in config.items() if value is not None}
    return create_paginator({"type": spec.type, **given})  # type: ignore[arg-type,typeddict-item]


def _either(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A place in the body takes the place of the parameter, which has a default."""
    config = dict(config)
    for name in names:
        if config[f"{name}_body_path"]:
            config[f"{name}_param"] = None
    return config


def _found(response: Response, rows: Sequence[Any]) -> BasePaginator:
    """The paginator that the first answer tells of."""
    paginator, _ = PaginatorFactory().create_paginator(response)
    if not isinstance(paginator, PageNumberPaginator):
        return paginator
    answer = response.json()
    pages = [value for key, value in _meta(answer) if _PAGE.fullmatch(key)]
    if pages and isinstance(pages[0], int):
        numbered = copy(paginator)
        numbered.initial_value = numbered.current_value = numbered.base_index = pages[0]
        return numbered
    # Its first page may be 0 or 1: with more than one page that must be declared.
    return SinglePagePaginator()


def _meta(answer: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """What an answer says beside its rows."""
    for key, value in answer.items() if isinstance(answer, dict) else ():
        if isinstance(value, dict) and depth < 2:
            yield from _meta(value, depth + 1)
        else:
            yield key, value


def _more(answer: Any, rows: int | None) -> str:
    """What in an answer tells of more rows; by number only where how many came is given."""
    for key, value in _meta(answer):
        if value is True and _MORE.fullmatch(key):
            return f"{key}: true"
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if rows is not None and is_number and _TOTAL.fullmatch(key) and value > rows:
            return f"{key}: {value}"
        if rows is not None and is_number and "pages" in key.lower() and value > 1:
            return f"{key}: {value}"
    return ""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "nothing" if value is None else names.get(type(value), "a number")
