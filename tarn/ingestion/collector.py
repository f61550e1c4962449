"""The HTTP server that senders post events to. It answers 2xx when they are safe in the lake."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.webhook import (
    EVENT_ID,
    RECEIVED_AT,
    HmacAuth,
    StripeAuth,
    TokenAuth,
    WebhookSystem,
    WebhookTable,
)
from tarn.ingestion.names import TAKEN, snake_case
from tarn.ingestion.spool import Spool
from tarn.storage.clock import new_name
from tarn.storage.lake import Lake

log = logging.getLogger(__name__)

BODY_SECONDS = 30
"""A sender that takes longer to send a body is let go."""
LARGEST = 2**63 - 1
"""Whole number that a column can hold."""
LONGEST_NAME = 180
"""Of a field with all it is nested in: longer ones can be no name of a table."""
Headers = Mapping[str, str]


class Refusal(HTTPException):
    """An answer other than 2xx: what the sender did wrong."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)


def app(systems: Sequence[Declared], lake: Lake, counts: Counter[str]) -> FastAPI:
    """The collector of all systems, whose variables are resolved. Accepted events are counted by
    `<system>.<table>`."""
    api = FastAPI(title="Tarn collector", docs_url=None, redoc_url=None, openapi_url=None)
    doors = {each.name: _Door(each, lake, counts) for each in systems}

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.post("/{system}/{table}")
    async def receive(system: str, table: str, request: Request) -> dict[str, int]:
        door = doors.get(system)
        if door is None:
            raise Refusal(404, "no such system")
        return {"accepted": await door.receive(table, request)}

    return api


class _Door:
    """Where the events of one system come in."""

    def __init__(self, declared: Declared, lake: Lake, counts: Counter[str]) -> None:
        assert isinstance(declared.system, WebhookSystem)
        self.system, self.counts = declared.system, counts
        self.writers = {
            name: _Writer(Spool(lake, declared.name, name)) for name in declared.system.tables
        }

    async def receive(self, table: str, request: Request) -> int:
        """How many events the request held, all of them safe."""
        connection = self.system.connection
        body = await _body(request, connection.max_bytes)
        if not is_authentic(connection.auth, request.headers, body, time.time()):
            raise Refusal(401, "the token or signature is missing, wrong or too old")
        if table not in self.writers:
            raise Refusal(404, "no such table")
        events = _identified(parsed(body), self.system.tables[table], request.headers)
        try:
            await self.writers[table].add(events)
        except (OSError, TarnError) as failure:
            log.error("%s.%s: cannot keep events: %s", self.system.system, table, failure)
            raise Refusal(503, "cannot keep events now; send them again later") from failure
        self.counts[f"{self.system.system}.{table}"] += len(events)
        return len(events)


class _Writer:
    """Puts events into a spool. Those that come while a segment is being written share the next."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.waiting: list[tuple[list[dict[str, Any]], asyncio.Future[None]]] = []
        self.writing: asyncio.Task[None] | None = None

    async def add(self, events: list[dict[str, Any]]) -> None:
        """Return when the events are safe; raise what kept them from it."""
        if not events:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((events, done))
        if self.writing is None or self.writing.done():
            self.writing = asyncio.create_task(self._write())
        await asyncio.shield(done)

    async def _write(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting, []
            events = [event for some, _ in batch for event in some]
            failure: Exception | None = None
            try:
                await asyncio.to_thread(self.spool.put, events)
            except Exception as error:
                failure = error
            for _, done in batch:
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)


def is_authentic(
    auth: TokenAuth | HmacAuth | StripeAuth, headers: Headers, body: bytes, now: float
) -> bool:
    """Whether the sender has shown that it knows the secret. Takes as long for any wrong one."""
    if isinstance(auth, TokenAuth):
        given = headers.get(auth.header, "")
        given = given[7:] if given[:7].lower() == "bearer " else given
        return hmac.compare_digest(given.encode(), auth.token.encode())
    if isinstance(auth, StripeAuth):
        return _is_stripes(auth, headers.get("stripe-signature", ""), body, now)
    signed = body
    if auth.timestamp is not None:
        sent = headers.get(auth.timestamp.header, "")
        if not _is_recent(sent, auth.timestamp.tolerance_seconds, now):
            return False
        before, _, after = auth.timestamp.signed.replace("{timestamp}", sent).partition("{body}")
        signed = before.encode() + body + after.encode()
    digest = hmac.new(auth.secret.encode(), signed, getattr(hashlib, auth.algorithm)).digest()
    expected = digest.hex() if auth.encoding == "hex" else base64.b64encode(digest).decode()
    given = headers.get(auth.header, "")
    return hmac.compare_digest(given.encode(), (auth.prefix + expected).encode())


def _is_stripes(auth: StripeAuth, header: str, body: bytes, now: float) -> bool:
    """Stripe's header holds the time and one signature a secret: t=1700000000,v1=…,v1=…"""
    parts = [part.strip().partition("=") for part in header.split(",")]
    sent = next((value for name, _, value in parts if name == "t"), "")
    if not _is_recent(sent, auth.tolerance_seconds, now):
        return False
    signed = sent.encode() + b"." + body
    expected = hmac.new(auth.secret.encode(), signed, hashlib.sha256).hexdigest().encode()
    given = [value.encode() for name, _, value in parts if name == "v1"]
    return any(hmac.compare_digest(each, expected) for each in given)


def _is_recent(sent: str, tolerance: int, now: float) -> bool:
    is_number = sent.isascii() and sent.isdigit() and len(sent) < 16
    return is_number and abs(now - int(sent)) <= tolerance


def parsed(body: bytes) -> list[dict[str, Any]]:
    """The events of a body: a JSON object, or a list of them."""
    try:
        found = json.loads(body, parse_constant=_no_number, parse_int=_whole)
        # Half a surrogate pair is JSON, but no text that could be kept.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON that can be kept: {error}") from None
    events = found if isinstance(found, list) else [found]
    if not all(isinstance(event, dict) for event in events):
        raise Refusal(400, "the body is no JSON object or list of objects")
    for event in events:
        _check_names(event, 0)
    return events


def _whole(text: str) -> int:
    if len(text) > 20 or not -LARGEST <= int(text) <= LARGEST:
        raise ValueError("a whole number is beyond 64 bits")
    return int(text)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check_names(value: Any, length: int) -> None:
    """Raise for fields that no table could hold, which would keep all others waiting."""
    if length > LONGEST_NAME:
        raise Refusal(400, "the body is nested too deeply, or has too long names")
    if isinstance(value, list):
        for each in value:
            _check_names(each, length + 6)
    elif isinstance(value, dict):
        names = [snake_case(name) if name else "" for name in value]
        if taken := {"", *TAKEN}.intersection(names):
            raise Refusal(400, f"a field may not be called {taken.pop()!r}")
        if len(set(names)) < len(names):
            raise Refusal(400, f"fields have the same name in snake case: {', '.join(value)[:200]}")
        for name, each in value.items():
            _check_names(each, length + len(name) + 2)


def _identified(
    events: Sequence[dict[str, Any]], spec: Any, headers: Headers
) -> list[dict[str, Any]]:
    """The events with an id and the time, if all have what they must have."""
    assert isinstance(spec, WebhookTable)
    mark = headers.get(spec.id_header, "") if spec.id_header else new_name()
    if not mark:
        raise Refusal(400, f"the header {spec.id_header} is missing")
    _check_required(events, spec)
    received = datetime.now(UTC).isoformat()
    several = len(events) > 1
    return [
        {**event, EVENT_ID: f"{mark}-{i}" if several else mark, RECEIVED_AT: received}
        for i, event in enumerate(events)
    ]


def _check_required(events: Sequence[dict[str, Any]], spec: WebhookTable) -> None:
    """Fields that the contract requires. Nested ones are checked when they are loaded."""
    required = {*spec.primary_key, *spec.contract.required} - {EVENT_ID, RECEIVED_AT}
    for i, event in enumerate(events):
        given = {snake_case(k) for k, v in event.items() if v is not None}
        if gone := sorted(name for name in required if "__" not in name and name not in given):
            raise Refusal(422, f"event {i} lacks {', '.join(gone)}")


async def _body(request: Request, limit: int) -> bytes:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "send the body as it is, without content-encoding")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise Refusal(413, f"more than {limit} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise Refusal(413, f"more than {limit} bytes")
    except TimeoutError:
        raise Refusal(408, "the body took too long") from None
    return bytes(body)
