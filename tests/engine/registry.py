"""A schema registry for tests, as Confluent's answers its clients. It keeps schemas in memory."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

USER, PASSWORD = "reader", "s3cret"
_GIVEN = re.compile(r"/subjects/([^/]+)(/versions(?:/([^/]+))?)?")
_NOT_FOUND = (404, {"error_code": 40403, "message": "Schema not found"})


@dataclass
class Registry:
    """Schemas by number from 1 on, and the numbers of each subject's versions."""

    url: str = ""
    schemas: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, list[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Paths of the requests so far."""
    is_away: bool = False
    """Answers are 503."""
    is_locked: bool = False
    """It wants user and password."""

    def post(self, subject: str, told: dict[str, Any], is_new: bool) -> tuple[int, Any]:
        schema = {
            "schema": told["schema"],
            "schemaType": told.get("schemaType", "AVRO"),
            "references": told.get("references", []),
        }
        if schema not in self.schemas:
            if not is_new:
                return _NOT_FOUND
            self.schemas.append(schema)
        number = self.schemas.index(schema) + 1
        versions = self.versions.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        version = versions.index(number) + 1
        return 200, {"id": number, "subject": subject, "version": version, **schema}

    def by_number(self, number: int, form: str) -> tuple[int, Any]:
        if not 0 < number <= len(self.schemas):
            return _NOT_FOUND
        told = dict(self.schemas[number - 1])
        if told["schemaType"] == "AVRO":
            # As Confluent's, which leaves out what goes without saying.
            del told["schemaType"]
        elif form == "serialized":
            told["schema"] = serialized(told["schema"])
        return 200, told

    def by_version(self, subject: str, version: str, form: str) -> tuple[int, Any]:
        numbers = self.versions.get(subject, [])
        at = len(numbers) if version in ("latest", "-1") else int(version)
        if not 0 < at <= len(numbers):
            return _NOT_FOUND
        number = numbers[at - 1]
        found = self.by_number(number, form)[1]
        return 200, {"id": number, "subject": subject, "version": at, **found}

    def get(self, path: str, form: str) -> tuple[int, Any]:
        if match := re.fullmatch(r"/schemas/ids/(\d+)", path):
            return self.by_number(int(match[1]), form)
        match = _GIVEN.fullmatch(path)
        if match and match[3]:
            return self.by_version(unquote(match[1]), match[3], form)
        return _NOT_FOUND


def serialized(schema: str) -> str:
    """A protobuf schema in compiled form, whichever form it was given in."""
    if "syntax" not in schema and "message" not in schema:
        return schema
    with TemporaryDirectory(prefix="tarn-proto-") as folder:
        Path(folder, "value.proto").write_text(schema)
        out = Path(folder, "out")
        assert not protoc.main(
            ["protoc", f"-I{folder}", f"-I{_includes()}", f"-o{out}", f"{folder}/value.proto"]
        )
        file = FileDescriptorSet.FromString(out.read_bytes()).file[0]
    return base64.b64encode(file.SerializeToString()).decode()


def _includes() -> Path:
    return Path(protoc.__file__).parent / "_proto"


@contextmanager
def registry(port: int = 0) -> Iterator[Registry]:
    """A registry while it runs."""
    told = Registry()
    credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            split = urlsplit(self.path)
            form = parse_qs(split.query).get("format", [""])[0]
            told.asked.append(split.path)
            self._answer(*(self._refusal() or told.get(split.path, form)))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            match = _GIVEN.fullmatch(urlsplit(self.path).path)
            assert match, self.path
            answer = told.post(unquote(match[1]), body, is_new=bool(match[2]))
            self._answer(*(self._refusal() or answer))

        def _refusal(self) -> tuple[int, Any] | None:
            if told.is_away:
                return 503, {"error_code": 50301, "message": "away"}
            if told.is_locked and self.headers.get("authorization") != f"Basic {credentials}":
                return 401, {"error_code": 401, "message": "Unauthorized"}
            return None

        def _answer(self, status: int, found: Any) -> None:
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
