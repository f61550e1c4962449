"""REST APIs that behave and that misbehave: every way of paging and of signing in, every fault with
what is said of it, what the lake then holds, and that the next load heals it."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import format_datetime
from threading import Event
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from tarn.errors import TarnError
from tarn.ingestion.declarations import declare
from tarn.ingestion.declarations import rest_api as spec
from tarn.ingestion.engine import ingest
from tarn.ingestion.options import Options, Span
from tarn.ingestion.sources.http import Manners
from tarn.ingestion.sources.rest_api.source import RestApi, just_before, moment
from tarn.settings import settings
from tests.engine.conftest import ROOT
from tests.engine.ingesting import Project, Row, counts_of, project
from tests.engine.upstreams import RESET, TOKEN, Answer, Door, Feed, Request, feed_row, serving

__all__ = ["project"]

JSON = {"content-type": "application/json"}
CURSOR = "{type: cursor, cursor_path: next, cursor_param: cursor}"
THINGS = """
  things:
    primary_key: [id]
    cursor: at
    write: merge
    columns: {at: timestamp}
    endpoint:
      path: things
      data_selector: data
      count_path: total
      incremental: {start_param: since}
"""


@pytest.fixture
def feed() -> Iterator[tuple[Feed, str]]:
    feed = Feed(6)
    with serving(feed.answer) as address:
        yield feed, address


def _declare(
    project: Project, address: str, tables: str = THINGS, auth: str = "", more: str = ""
) -> None:
    connection = f"\n  base_url: {address}\n  paginator: {CURSOR}\n  attempts: 3\n"
    connection += f"  timeout_seconds: 0.4\n{more}" + (f"  auth: {auth}\n" if auth else "")
    project.declare("web", "rest_api", connection, tables)


def _ids(project: Project, table: str = "raw_web.things") -> list[Any]:
    return [row["id"] for row in project.rows(table, "id", "id")]


def _json(content: object, status: int = 200) -> Answer:
    return status, JSON, json.dumps(content).encode()


def test_faults_that_pass_are_waited_out(project: Project) -> None:
    feed = Feed(22)
    never = Event()

    def slow() -> Answer:
        never.wait(2)
        return _json({"data": [], "next": None, "total": 0})

    whole = json.dumps({"data": [feed_row(3)], "next": None})
    faults: list[Answer | Callable[[], Answer]] = [
        (429, {"retry-after": "0"}, b""),
        (429, {"retry-after": format_datetime(datetime.now(UTC))}, b""),
        (429, {}, b"slow down"),
        (500, {}, b"<html>oops</html>"),
        (503, {"retry-after": "0"}, b""),
        (200, JSON, whole[:-9].encode()),
        (200, {**JSON, "content-length": "999"}, whole.encode()),
        (200, JSON, b""),
        (RESET, {}, b""),
        slow,
    ]
    feed.trouble = {2 * number: fault for number, fault in enumerate(faults, 1)}
    with serving(feed.answer) as address:
        _declare(project, address)
        assert counts_of(project.load()["things"]) == (22, 22, 0, 0)
    assert not feed.trouble
    assert len(feed.asked) == 21
    assert _ids(project) == list(range(1, 23))


FATAL: list[tuple[Answer, str]] = [
    ((400, {}, b"no more"), "answered 400: no more"),
    ((429, {"retry-after": "4000"}, b""), "left alone for 4,000 s, more than 300"),
    ((200, {"content-type": "text/html"}, b"<html>Log in"), "text/html instead of JSON: <html>Log"),
    ((200, {"content-type": "text/plain"}, b"maintenance"), "text/plain instead of JSON: mainten"),
    (_json({"error": {"code": 7, "message": "quota"}}), 'an error with status 200: {"code": 7,'),
    (_json({"data": [], "errors": ["half"], "total": 6}), 'an error with status 200: ["half"]'),
    (_json({"success": False, "data": []}), 'with status 200: {"success": false'),
    (_json({"data": {"id": 3}, "total": 6}), "an object where a list of rows was expected at data"),
    (_json({"data": "soon", "total": 6}), "text where a list of rows was expected at data"),
    (_json({"items": [feed_row(3)], "next": None}), "nothing at data; the answer has items, next"),
    (_json([feed_row(3)]), "nothing at data; the answer has a list"),
    (
        _json({"data": [feed_row(1), feed_row(2)], "next": 4, "total": 6}),
        "page 2: the same rows as page 1: the API does not advance",
    ),
    (
        _json({"data": [feed_row(3)], "next": 2, "total": 6}),
        "page 2: the mark of the next page is one that was followed before",
    ),
    (_json({"data": [feed_row(5)], "total": 6}), "the API counts 6 rows, its pages held 3"),
    (_json({"data": [feed_row(3)], "has_more": True, "total": 6}), "more rows (has_more: true)"),
    (_json({"data": [feed_row(3)], "next": None}), "no number of rows at total"),
    ((204, {}, b""), "the page after page 1 is not there"),
]


def test_faults_that_stay_fail_the_load_and_the_next_heals_it(
    project: Project, feed: tuple[Feed, str]
) -> None:
    server, address = feed
    _declare(project, address)
    for answer, told in FATAL:
        server.asked.clear()
        server.trouble = {2: answer}
        error = project.load()["things"].error
        assert told in str(error), (answer, error)
        assert "ingestion/web.yml:" in str(error)
        assert list(project.versions()) == ["tarn.loads"]
    assert counts_of(project.load()["things"]) == (6, 6, 0, 0)
    # In a later load too nothing is half done, and it begins again at the lake's cursor.
    server.rows += [feed_row(number) for number in (7, 8, 9)]
    server.asked.clear()
    server.trouble = {2: FATAL[0][0]}
    assert project.load()["things"].status == "failed"
    assert _ids(project) == [1, 2, 3, 4, 5, 6]
    server.asked.clear()
    assert counts_of(project.load()["things"]) == (4, 3, 0, 1)
    assert server.asked[0].params["since"] == "2017-01-05T23:59:59Z"
    assert _ids(project) == [*range(1, 10)]


def test_faults_that_do_not_pass_are_told(project: Project, feed: tuple[Feed, str]) -> None:
    server, address = feed
    _declare(project, address)
    for answer, told in {
        (502, "bad gateway"): "/things answered 502: bad gateway",
        (RESET, ""): f"cannot reach {address}/things: ",
        (200, '{"data": [{"id": 1'): "/things: answered JSON that is cut off after 18 bytes",
    }.items():
        server.asked.clear()
        reply: Answer = (answer[0], JSON, answer[1].encode())
        server.trouble = dict.fromkeys(range(1, 4), reply)
        assert told in str(project.load()["things"].error)
        assert not server.trouble


def test_rows_that_come_on_two_pages_are_counted_once(
    project: Project, feed: tuple[Feed, str]
) -> None:
    server, address = feed
    server.trouble = {2: _json({"data": [feed_row(2), feed_row(3)], "next": 3, "total": 6})}
    _declare(project, address)
    assert counts_of(project.load()["things"]) == (7, 6, 0, 1)
    assert _ids(project) == [1, 2, 3, 4, 5, 6]


def test_fields_that_come_and_go_between_pages_are_one_table(
    project: Project, feed: tuple[Feed, str]
) -> None:
    server, address = feed
    server.rows[3] |= {"Colour": "red", "size": {"cm": 4}}
    _declare(project, address)
    assert counts_of(project.load()["things"]) == (6, 6, 0, 0)
    rows = project.rows("raw_web.things", "id, colour, size__cm", "id")
    assert rows[3] == {"id": 4, "colour": "red", "size__cm": 4}
    assert rows[4] == {"id": 5, "colour": None, "size__cm": None}


def test_what_is_no_object_is_quarantined_with_its_page(
    project: Project, feed: tuple[Feed, str]
) -> None:
    server, address = feed
    server.trouble = {2: _json({"data": [feed_row(3), None, "x"], "next": 4, "total": 6})}
    _declare(project, address, more="  headers: {X-Key: k3y}\n")
    assert counts_of(project.load()["things"]) == (7, 5, 2, 0)
    rows = project.rows("quarantine_web.things", "_reason, _place", "all")
    assert rows == [
        {
            "_reason": f"{what} where an object was expected",
            "_place": f"{address}/things?cursor=2 page 2",
        }
        for what in ("nothing", "text")
    ]


def test_a_list_of_plain_values_is_one_column(project: Project) -> None:
    with serving(lambda request: _json(["a", "b"])) as address:
        _declare(project, address, "  tags: {write: append, endpoint: {path: tags}}")
        text = (project.path / "ingestion/web.yml").read_text()
        (project.path / "ingestion/web.yml").write_text(text.replace(CURSOR, "{type: auto}"))
        assert counts_of(project.load()["tags"]) == (2, 2, 0, 0)
    assert [row["value"] for row in project.rows("raw_web.tags", "value")] == ["a", "b"]


WAYS = {
    "linked": "{type: auto}",
    "json_linked": "{type: auto}",
    "marked": "{type: auto}",
    "numbered": "{type: auto}",
    "plain": "{type: auto}",
    "header_marked": "{type: header_cursor, cursor_key: X-Next, cursor_param: mark}",
    "capped": "{type: offset, limit: 1000}",
    "counted": "{type: offset, limit: 1000, total_path: total}",
    "paged": "{type: page_number, base_page: 1, has_more_path: more}",
    "posted": "{type: cursor, cursor_path: next, cursor_body_path: page.mark}",
    "posted_offset": "{type: offset, limit: 2, offset_body_path: o, limit_body_path: l}",
    "posted_page": "{type: page_number, page_body_path: p}",
}


def _paging(request: Request) -> Answer:
    """Five rows, at most two at a time, in each of the ways."""
    way = request.path.strip("/")
    body = json.loads(request.body or b"{}")
    sent: dict[str, Any] = {**request.params, **body}
    assert not way.startswith("posted") or sent["filter"] == {"open": True}
    start = int(
        sent.get("mark")
        or sent.get("cursor")
        or sent.get("offset")
        or sent.get("o")
        or body.get("page", {}).get("mark")
        or 0
    )
    if way in ("numbered", "paged"):
        start = (int(sent.get("page", 1)) - 1) * 2
    if way == "posted_page":
        start = int(sent["p"]) * 2
    rows = [feed_row(number) for number in range(1, 6)][start : start + 2]
    following = start + 2 if start + 2 < 5 else None
    link = f"/{way}?mark={following}"
    headers = dict(JSON)
    match way:
        case "linked" if following:
            headers["link"] = f'<{request.host}{link}>; rel="next"'
        case "header_marked" if following:
            headers["X-Next"] = str(following)
        case "plain":
            return _json([feed_row(number) for number in range(1, 6)])
    pages = {"page": start // 2 + 1, "total_pages": 3} if way == "numbered" else {}
    following_link = link if following else None
    told: dict[str, dict[str, Any]] = {
        "json_linked": {"links": {"next": following_link}},
        "marked": {"meta": {"next": following}},
        "numbered": {"meta": pages},
        "counted": {"total": 5},
        "paged": {"more": following is not None},
        "posted": {"next": following},
    }
    return 200, headers, json.dumps({"results": rows, **told.get(way, {})}).encode()


def test_every_way_of_paging_gives_every_row(project: Project) -> None:
    tables = ""
    for way, paginator in WAYS.items():
        post = ", method: POST, json: {filter: {open: true}}" if way.startswith("posted") else ""
        endpoint = f"{{path: {way}, paginator: {paginator}{post}}}"
        tables += f"  {way}: {{primary_key: [id], write: merge, endpoint: {endpoint}}}\n"
    with serving(_paging) as address:
        _declare(project, address, tables)
        loads = project.load()
    assert {way: counts_of(load) for way, load in loads.items()} == dict.fromkeys(
        WAYS, (5, 5, 0, 0)
    )


def test_an_api_that_says_there_is_more_but_not_how_is_not_half_read(project: Project) -> None:
    answers = {
        "/total": {"data": [{"id": 1}], "total": 9},
        "/more": {"data": [{"id": 1}], "hasMore": True},
        "/pages": {"data": [{"id": 1}], "total_pages": 4},
        "/lists": {"old": [{"id": 1}], "new": [{"id": 2}]},
        "/message": {"message": "come back later"},
    }
    paths = {path.strip("/"): "{type: auto}" for path in answers}
    tables = "".join(
        f"  {path}: {{write: append, endpoint: {{path: {path}, paginator: {kind}}}}}\n"
        for path, kind in paths.items()
    )
    with serving(lambda request: _json(answers[request.path])) as address:
        _declare(project, address, tables)
        loads = project.load()
    for table, told in {
        "total": "more rows (total: 9), but not how to get them",
        "more": "more rows (hasMore: true)",
        "pages": "more rows (total_pages: 4)",
        "lists": "several lists in the answer: old, new",
        "message": "an object where a list of rows was expected",
    }.items():
        assert told in str(loads[table].error)


SIGNED = {
    "header": "{type: api_key, name: X-Key, api_key: k3y-of-ours}",
    "query": "{type: api_key, name: access, api_key: k3y-of-ours, location: query}",
    "cookie": "{type: api_key, name: sid, api_key: k3y-of-ours, location: cookie}",
    "basic": "{type: http_basic, username: us, password: k3y-of-ours}",
}


@pytest.mark.parametrize("way", SIGNED)
def test_credentials_go_to_their_server_only_and_into_no_message(
    project: Project, way: str
) -> None:
    elsewhere: list[Request] = []
    feed = Feed(4)

    def other(request: Request) -> Answer:
        elsewhere.append(request)
        return feed.answer(request)

    def sent(request: Request) -> str:
        return f"{request.headers.as_string()} {request.params}"

    def home(request: Request) -> Answer:
        assert "k3y-of-ours" in sent(request) or "dXM6azN5LW9mLW91cnM=" in sent(request)
        if request.path == "/moved":
            return 307, {"location": f"{address_elsewhere}/things?cursor=0"}, b""
        if request.path == "/leads":
            return _json({"data": [{"id": 1}], "link": f"{address_elsewhere}/things"})
        return 403, {}, sent(request).encode()

    tables = """
  moved:
    primary_key: [id]
    write: merge
    endpoint: {path: moved, paginator: {type: single_page}, data_selector: "data[*]"}
  leads:
    primary_key: [id]
    write: merge
    endpoint: {path: leads, paginator: {type: json_link, next_url_path: link}}
  shut: {primary_key: [id], write: merge, endpoint: {path: shut}}
"""
    with serving(other) as address_elsewhere, serving(home) as address:
        feed.page = lambda rows, following, total: {"data": rows}  # type: ignore[method-assign]
        _declare(project, address, tables, SIGNED[way])
        loads = project.load()
        lines = _source(project).check()
    assert counts_of(loads["moved"]) == (2, 2, 0, 0)
    assert "credentials are not sent there" in str(loads["leads"].error)
    assert "answered 403" in str(loads["shut"].error)
    assert not any(
        "k3y-of-ours" in sent(request) or "dXM6" in sent(request) for request in elsewhere
    )
    told = f"{[load.error for load in loads.values()]} {lines}"
    assert "k3y-of-ours" not in told
    assert "dXM6" not in told


@pytest.mark.parametrize("place", ["body", "basic"])
def test_oauth2_tokens_are_fetched_once_and_renewed_when_refused(
    project: Project, feed: tuple[Feed, str], place: str
) -> None:
    server, _ = feed
    door = Door(server.answer)
    with serving(door.answer) as address:
        _declare(project, address, auth=_client(address, place))
        assert counts_of(project.load()["things"]) == (6, 6, 0, 0)
        assert door.given == 1
        assert [form["scope"] for form in door.forms] == ["read"]
        assert all(("client_id" in form) == (place == "body") for form in door.forms)
        server.rows += [feed_row(number) for number in range(7, 12)]
        door.uses = 2
        # Six rows from the cursor on are three pages: the token ends in their middle.
        assert counts_of(project.load()["things"]) == (6, 5, 0, 1)
        assert door.given == 3
        door.uses = 0
        refused = str(project.load()["things"].error)
        assert "answered 401" in refused
        assert "t0ken" not in refused
        door.SECRET = "another"  # noqa: S105
        error = str(project.load()["things"].error)
        assert "/token: no access_token, 401" in error
        assert "cl1ent" not in error
        door.SECRET, door.uses = Door.SECRET, 1000
        server.rows.append(feed_row(12))
        assert counts_of(project.load()["things"]) == (2, 1, 0, 1)


def _client(address: str, place: str = "body") -> str:
    secret = f"client_id: {Door.ID}, client_secret: {Door.SECRET}, credentials_in: {place}"
    more = "access_token_request_data: {scope: read}"
    token = f"access_token_url: {address}/token"
    return f"{{type: oauth2_client_credentials, {token}, {secret}, {more}}}"


def test_an_oauth2_token_is_renewed_before_it_expires(
    project: Project, feed: tuple[Feed, str]
) -> None:
    door = Door(feed[0].answer)
    door.lasts = 0
    with serving(door.answer) as address:
        _declare(project, address, auth=_client(address).replace("{scope", "{resource: x, scope"))
        door.lasts = 1e-9  # type: ignore[assignment]
        assert counts_of(project.load()["things"]) == (6, 6, 0, 0)
    assert door.given == 3


def test_a_bearer_token_that_ends_in_the_middle_is_told(
    project: Project, feed: tuple[Feed, str]
) -> None:
    server, address = feed
    _declare(project, address, auth=f"{{type: bearer, token: {TOKEN}}}")
    server.trouble = {3: (401, {}, f"{TOKEN} is over".encode())}
    error = str(project.load()["things"].error)
    assert "answered 401 after 2 good answers" in error
    assert "the credentials have expired in the middle; nothing was written" in error
    assert TOKEN not in error
    assert list(project.versions()) == ["tarn.loads"]
    server.asked.clear()
    server.trouble = {1: (401, {}, b"no")}
    assert "check the credentials" in str(project.load()["things"].error)


PARENTS = """
  shops: {primary_key: [id], write: merge, endpoint: {path: shops, ignore: [404]}}
  staff:
    primary_key: [id, _shops_id]
    write: merge
    endpoint:
      path: "shops/{resources.shops.id}/staff"
      params: {all: true}
      include_from_parent: [id]
      ignore: [404]
  shop:
    primary_key: [id]
    write: merge
    endpoint: {path: "shops/{resources.shops.id}", paginator: {type: auto}}
"""


def test_endpoints_below_the_rows_of_another(project: Project) -> None:
    def answer(request: Request) -> Answer:
        match request.path.strip("/").split("/"):
            case ["shops"]:
                start = int(request.params.get("cursor", 0))
                rows = [{"id": number} for number in range(4)][start : start + 2]
                return _json({"data": rows, "next": start + 2 if start < 2 else None})
            case ["shops", number]:
                return _json({"id": int(number), "tags": [{"name": "new"}]})
            case ["shops", number, "staff"]:
                assert request.params["all"] == "true"
                people = [{"id": person} for person in range(int(number))]
                return _json({"data": people, "next": None}) if people else _json({}, 404)
        raise AssertionError(request.path)

    with serving(answer) as address:
        _declare(project, address, PARENTS)
        loads = project.load()
        assert counts_of(loads["staff"]) == (6, 6, 0, 0)
        assert counts_of(loads["shop"]) == (4, 4, 0, 0)
        assert counts_of(loads["shop__tags"]) == (4, 4, 0, 0)
    staff = project.rows("raw_web.staff", "_shops_id, id")
    assert (staff[0], staff[-1]) == ({"_shops_id": 1, "id": 0}, {"_shops_id": 3, "id": 2})


FORMS: dict[str, tuple[str, Row, Row]] = {
    "iso": (
        "{start_param: s, initial_value: '2016'}",
        {"s": "2016"},
        {"s": "2017-01-05T23:59:59Z"},
    ),
    "seconds": ("{start_param: s, format: epoch_seconds}", {}, {"s": "1483660799"}),
    "milliseconds": ("{start_param: s, format: epoch_milliseconds}", {}, {"s": "1483660799000"}),
    "days": (
        "{start_param: s, end_param: e, end_value: z, format: date}",
        {"e": "z"},
        {"s": "2017-01-05", "e": "z"},
    ),
    "german": ("{start_param: s, format: '%d.%m.%Y'}", {}, {"s": "05.01.2017"}),
}


def test_moments_are_asked_for_in_the_api_s_own_form(
    project: Project, feed: tuple[Feed, str]
) -> None:
    server, address = feed
    tables = "".join(
        THINGS.replace("things", name).replace("{start_param: since}", incremental)
        for name, (incremental, *_) in FORMS.items()
    )
    _declare(project, address, tables)
    for turn in (1, 2):
        server.asked.clear()
        assert not [load.error for load in project.load().values() if load.error]
        for name, told in FORMS.items():
            sent = next(each.params for each in server.asked if each.path == f"/{name}")
            assert sent == told[turn]


def test_a_backfill_asks_for_its_span(project: Project, feed: tuple[Feed, str]) -> None:
    server, address = feed
    ends = "{start_param: since, end_param: until, format: date}"
    _declare(project, address, THINGS.replace("{start_param: since}", ends))
    project.load()
    server.asked.clear()
    ingest(["web"], options=Options(backfill=Span.read("2017-01-02..2017-01-03")))
    # What is new comes first.
    sent = server.asked[-1].params
    assert (sent["since"], sent["until"]) == ("2017-01-01", "2017-01-04")
    assert _ids(project) == [1, 2, 3, 4, 5, 6]


def test_moments_can_stand_in_a_body_and_numbers_stay_numbers(project: Project) -> None:
    bodies: list[Any] = []

    def answer(request: Request) -> Answer:
        bodies.append(json.loads(request.body))
        return _json([{"id": 1, "at": 7}])

    body = 'json: {from: "{incremental.start_value}", text: "since {incremental.start_value}"}'
    tables = f"""
  things:
    primary_key: [id]
    cursor: at
    write: merge
    endpoint:
      path: things
      method: POST
      {body}
      paginator: {{type: single_page}}
      incremental: {{initial_value: 0}}
"""
    with serving(answer) as address:
        _declare(project, address, tables)
        project.load()
        project.load()
    assert bodies == [{"from": 0, "text": "since 0"}, {"from": 6, "text": "since 6"}]


def test_just_before_steps_back_from_what_may_be_shared() -> None:
    assert just_before("2017-01-01T02:00:00+02:00") == datetime(2016, 12, 31, 23, 59, 59)
    assert just_before("2017-01-01") == date(2016, 12, 31)
    assert just_before("abc") == "abc"
    assert just_before(7) == 6
    assert moment(datetime(2017, 1, 1, 5), "date") == "2017-01-01"
    assert moment("abc", "date") == "abc"


def test_requests_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    monkeypatch.setattr("time.sleep", waited.append)
    manners = Manners(60, 5, requests_per_second=5)
    for _ in range(3):
        manners.pace()
    assert waited == pytest.approx([0, 0.2, 0.4])


def _source(project: Project) -> RestApi:
    declared = declare(project.path / "ingestion/web.yml").resolved(settings())
    return RestApi(declared, settings())


def test_check_says_what_each_endpoint_does(project: Project, feed: tuple[Feed, str]) -> None:
    server, _ = feed

    def answer(request: Request) -> Answer:
        if request.path == "/gone":
            return 404, {}, b"no such thing"
        if request.path == "/deaf":
            request.params.pop("since", None)
        return server.answer(request)

    deaf = THINGS.replace("things", "deaf").replace("      count_path: total\n", "")
    gone = "  gone: {write: append, endpoint: {path: gone}}\n"
    with serving(answer) as address:
        _declare(project, address, THINGS + deaf + gone)
        things, deaf_line, gone_line = _source(project).check()
        assert things == (
            "things: 200, 2 rows on the first page; rows at data; pages by cursor;"
            " incremental: works"
        )
        assert deaf_line.endswith("incremental: the API ignores it")
        assert "answered 404: no such thing" in gone_line


OPENAPI = {
    "openapi": "3.1.0",
    "components": {"parameters": {"since": {"name": "updated_after", "in": "query", "schema": {}}}},
    "paths": {
        "/orders": {
            "get": {
                "summary": "Orders of the shop.",
                "parameters": [
                    {"$ref": "#/components/parameters/since"},
                    {"name": "offset", "in": "query", "schema": {"type": "integer"}},
                    {"name": "limit", "in": "query", "schema": {"maximum": 500}},
                ],
            }
        },
        "/orders/{id}": {"get": {}},
        "/secret": {"get": {}},
        "/health": {"get": {}},
    },
}


def test_tables_are_offered_from_an_openapi_document_and_first_pages(project: Project) -> None:
    orders = [
        {
            "orderId": number,
            "Total": 1.5,
            "paid": True,
            "updatedAt": f"2017-01-0{number}T00:00:00Z",
            "day": "2017-01-01",
            "lines": [{"sku": "a"}],
            "buyer": {"name": "n"},
        }
        for number in range(1, 4)
    ]

    def answer(request: Request) -> Answer:
        if request.path == "/openapi.json":
            return _json(OPENAPI)
        if request.path == "/secret":
            return 403, {}, b"no"
        if request.path == "/health":
            return _json({"status": "ok"})
        return _json({"items": orders, "total": 90})

    with serving(answer) as address:
        _declare(project, address, more="", tables="  x: {write: append, endpoint: {path: x}}")
        text = (project.path / "ingestion/web.yml").read_text()
        (project.path / "ingestion/web.yml").write_text(text.replace(CURSOR, "{type: auto}"))
        offered = {each.name: each for each in _source(project).offered()}
    assert list(offered) == ["orders", "secret"]
    assert offered["orders"].description == "Orders of the shop."
    assert offered["orders"].spec == {
        "write": "merge",
        "primary_key": ["order_id"],
        "cursor": "updated_at",
        "columns": {"updated_at": "timestamp", "day": "date"},
        "endpoint": {
            "path": "orders",
            "data_selector": "items",
            "paginator": {
                "type": "offset",
                "limit": 500,
                "offset_param": "offset",
                "limit_param": "limit",
                "total_path": "total",
            },
            "incremental": {"start_param": "updated_after"},
        },
    }
    assert offered["orders"].columns == {
        "order_id": "bigint",
        "total": "double",
        "paid": "boolean",
        "updated_at": "timestamp",
        "day": "date",
        "buyer__name": "text",
    }
    assert "answered 403" in offered["secret"].description


def test_an_api_without_document_cannot_say_what_it_has(project: Project) -> None:
    with serving(lambda request: (404, {}, b"")) as address:
        _declare(project, address, "  x: {write: append, endpoint: {path: x}}")
        source = _source(project)
        assert [each.name for each in source.offered()] == ["x"]
        undeclared = source.declared.system.model_copy(update={"tables": {}})
        source.declared = replace(source.declared, system=undeclared)
        with pytest.raises(TarnError, match="has no OpenAPI document that names its endpoints"):
            source.offered()


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        ("{path: x, json: {a: 1}}", "json needs method: POST"),
        ("{path: x, incremental: {end_param: e}}", "incremental needs start_param, or"),
        ("{path: 'x/{incremental.start_value}'}", "needs incremental"),
        (
            "{path: x, paginator: {type: cursor, cursor_path: n}}",
            "cursor_param or cursor_body_path",
        ),
        ("{path: x, incremental: {start_param: s, format: unix}}", "'unix' is neither iso, date"),
    ],
)
def test_mistakes_are_told_by_line(project: Project, endpoint: str, told: str) -> None:
    table = f"  x: {{primary_key: [id], cursor: at, write: merge, endpoint: {endpoint}}}"
    _declare(project, "http://127.0.0.1:1", table)
    with pytest.raises(TarnError, match=r"ingestion/web.yml:") as error:
        declare(project.path / "ingestion/web.yml")
    assert told in str(error.value)


def test_what_the_page_on_apis_declares_is_accepted() -> None:
    page = (ROOT / "docs/how-to/load-an-api.md").read_text()
    known = TypeAdapter[Any](spec.Auth | spec.Paginator)
    ways = re.findall(r"^\| `(\{type: .*?\})` \|", page, re.M)
    for way in ways:
        known.validate_python(yaml.safe_load(way.replace("…", "x")))
    assert len(ways) == 4 + 8
    first, second = re.findall(r"^```yaml\n((?:endpoint|tables):.*?)^```", page, re.M | re.S)
    spec.Endpoint.model_validate(yaml.safe_load(first)["endpoint"])
    for table in yaml.safe_load(second)["tables"].values():
        spec.RestTable.model_validate(table)


def test_objects_that_would_lose_a_field_or_a_digit_are_quarantined(project: Project) -> None:
    rows = [
        {"id": 1, "count": 5, "size": {"Width": 2}},
        {"id": 2, "count": 10**20},
        {"id": 3, "Name": "a", "name": "b"},
        {"id": 4, "size": {"Width": 2, "width": 3}},
        {"id": 5, "_load_id": "mine"},
    ]
    with serving(lambda request: (200, JSON, json.dumps(rows).encode())) as address:
        table = "  things: {primary_key: [id], write: merge, endpoint: {path: things}}"
        project.declare("api", "rest_api", f"{{base_url: '{address}'}}", table)
        assert counts_of(project.load()["things"]) == (5, 1, 4, 0)
    assert [row["id"] for row in project.rows("raw_api.things")] == [1]
    reasons = sorted(row["_reason"] for row in project.rows("quarantine_api.things"))
    assert reasons == [
        "a field may not be called _load_id",
        "count: 100000000000000000000 is not bigint",
        "fields Name, name have the same name in snake case",
        "size: fields Width, width have the same name in snake case",
    ]


def test_numbers_of_more_digits_than_a_double_are_not_bent(project: Project) -> None:
    said = ["0.1", "12345678901234567.89", "0.1234567890123456789", "1e-3"]
    rows = ", ".join(f'{{"id": {i}, "rate": {number}}}' for i, number in enumerate(said))
    with serving(lambda request: (200, JSON, f"[{rows}]".encode())) as address:
        table = "  rates: {primary_key: [id], write: merge, endpoint: {path: rates}"
        exact = f'{table}, columns: {{rate: "decimal(38,19)"}}}}'
        project.declare("api", "rest_api", f"{{base_url: '{address}'}}", exact)
        assert counts_of(project.load()["rates"]) == (4, 4, 0, 0)
    landed = [row["rate"] for row in project.rows("raw_api.rates", "rate", "id")]
    assert landed == [Decimal(number) for number in said]
