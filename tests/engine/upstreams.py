"""Small upstream servers for tests: a REST API, a Delta Sharing server."""

import json
import socket
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from deltalake import DeltaTable

TOKEN = "s3cret-token"  # noqa: S105
Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body. A content-length that is more than the body cuts it off."""
RESET = 0
"""As status: the connection ends without an answer."""


@contextmanager
def serving(answer: Callable[["Request"], Answer]) -> Iterator[str]:
    """Address of a server that answers requests by a function, in threads."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, headers, content = answer(Request(self, body))
            if status == RESET:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
                return
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Request:
    """What was asked."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        parts = urlsplit(handler.path)
        self.path, self.params = parts.path, dict(parse_qsl(parts.query))
        self.headers, self.body = handler.headers, body
        self.host = f"http://{handler.headers['host']}"


class Api:
    """A REST API over lists of objects that tests change as they like: pages of two, bearer token,
    `since` strictly after."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[Request] = []
        self.refuse: list[Answer] = []
        """Answers to give first, once each."""

    def answer(self, request: Request) -> Answer:
        self.asked.append(request)
        if request.headers["authorization"] != f"Bearer {TOKEN}":
            return _json(401, {"detail": "who are you? " + str(request.headers["authorization"])})
        if self.refuse:
            return self.refuse.pop(0)
        rows = self.rows.get(request.path.strip("/"))
        if rows is None:
            return _json(404, {"detail": "no such thing"})
        since, start = request.params.get("since", ""), int(request.params.get("start", 0))
        found = [row for row in rows if str(row.get("updated_at", "~")) > since]
        following = f"{request.host}{request.path}?since={since}&start={start + 2}"
        is_last = start + 2 >= len(found)
        page = {"data": found[start : start + 2], "next": None if is_last else following}
        return _json(200, page)


class Feed:
    """A REST API that can be made to misbehave: one list in pages of two, each with the mark of the
    next. `trouble` is answered instead, by number of the request, once each."""

    def __init__(self, rows: int) -> None:
        self.rows: list[dict[str, Any]] = [feed_row(number) for number in range(1, rows + 1)]
        self.trouble: dict[int, Answer | Callable[[], Answer]] = {}
        self.asked: list[Request] = []

    def answer(self, request: Request) -> Answer:
        self.asked.append(request)
        trouble = self.trouble.pop(len(self.asked), None)
        if trouble is not None:
            return trouble() if callable(trouble) else trouble
        found = [row for row in self.rows if row["at"] >= request.params.get("since", "")]
        start = int(request.params.get("cursor", 0))
        following = start + 2 if start + 2 < len(found) else None
        return _json(200, self.page(found[start : start + 2], following, len(found)))

    def page(self, rows: list[dict[str, Any]], following: int | None, total: int) -> Any:
        return {"data": rows, "next": following, "total": total}


class Door:
    """Gives tokens to the client that names itself well, each good for so many requests."""

    ID, SECRET = "tarn", "cl1ent+s3cret/"

    def __init__(self, behind: Callable[[Request], Answer], uses: int = 1000) -> None:
        self.behind, self.uses, self.lasts = behind, uses, 3600
        self.given = 0
        self.left = 0
        self.forms: list[dict[str, str]] = []

    def answer(self, request: Request) -> Answer:
        if request.path == "/token":
            return self._token(request)
        if request.headers["authorization"] != f"Bearer t0ken-{self.given}" or not self.left:
            return _json(401, {"detail": f"not {request.headers['authorization']}"})
        self.left -= 1
        return self.behind(request)

    def _token(self, request: Request) -> Answer:
        form = dict(parse_qsl(request.body.decode()))
        self.forms.append(form)
        basic = b64encode(f"{self.ID}:{quote(self.SECRET, safe='')}".encode()).decode()
        is_basic = request.headers["authorization"] == f"Basic {basic}"
        if not is_basic and form.get("client_secret") != self.SECRET:
            return _json(401, {"error": "invalid_client", "sent": form})
        self.given += 1
        self.left = self.uses
        return _json(200, {"access_token": f"t0ken-{self.given}", "expires_in": self.lasts})


def feed_row(number: int) -> dict[str, Any]:
    return {"id": number, "at": f"2017-01-{number:02}T00:00:00Z"}


def _json(status: int, content: object) -> Answer:
    return status, {"content-type": "application/json"}, json.dumps(content).encode()


def sharing(folder: Path) -> Callable[[Request], Answer]:
    """A Delta Sharing server of the table `panel.people` in share `research`, kept in `folder`."""

    def answer(request: Request) -> Answer:
        if request.path.startswith("/files/"):
            return 200, {}, (folder / request.path.removeprefix("/files/")).read_bytes()
        if request.headers["authorization"] != f"Bearer {TOKEN}":
            return _json(403, {"errorCode": "no", "message": "no"})
        if request.path == "/shares":
            return _json(200, {"items": [{"name": "research"}]})
        if request.path == "/shares/research/all-tables":
            people = {"name": "people", "schema": "panel", "share": "research"}
            return _json(200, {"items": [people]})
        if not request.path.startswith("/shares/research/schemas/panel/tables/people/"):
            return _json(404, {"errorCode": "no", "message": "no such table"})
        table = DeltaTable(folder)
        headers = {"delta-table-version": str(table.version())}
        if request.path.endswith("/version"):
            return 200, headers, b""
        described = {
            "id": "1",
            "format": {"provider": "parquet"},
            "schemaString": table.schema().to_json(),
            "partitionColumns": table.metadata().partition_columns,
        }
        lines: list[object] = [{"protocol": {"minReaderVersion": 1}}, {"metaData": described}]
        lines += [
            {
                "file": {
                    "url": f"{request.host}/files/{action['path']}",
                    "id": action["path"],
                    "partitionValues": action["partition_values"],
                    "size": action["size_bytes"],
                }
            }
            for action in _actions(table)
        ]
        return 200, headers, "".join(f"{json.dumps(line)}\n" for line in lines).encode()

    return answer


def _actions(table: DeltaTable) -> list[dict[str, Any]]:
    import pyarrow as pa

    partitions = table.metadata().partition_columns
    rows = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return [
        {
            "path": row["path"],
            "size_bytes": row["size_bytes"],
            "partition_values": {name: str(row[f"partition.{name}"]) for name in partitions},
        }
        for row in rows
    ]
