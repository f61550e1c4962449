"""A Delta Sharing server for tests: any auth type, listings in pages, both response formats."""

import base64
import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

from deltalake import DeltaTable
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK
from jwcrypto.jwt import JWT

from tests.engine.upstreams import TOKEN, Answer, Request

USER, PASSWORD = "reader", "pass-word-1"
CLIENT, CLIENT_SECRET = "client-7", "client-secret-1"
KEY_FILE = "client.pem"
BASICS = {"client": f"{CLIENT}:{CLIENT_SECRET}", "user": f"{USER}:{PASSWORD}"}


@dataclass
class Sharing:
    """Delta tables by `share.schema.table`, and how they are given out."""

    tables: Mapping[str, Path]
    auth: str = "bearer"
    """bearer, basic or oauth."""
    page_size: int = 2
    asked: list[str] = field(default_factory=list)
    broken: list[Callable[[Answer], Answer]] = field(default_factory=list)
    """What to do to the next files that are sent, once each."""
    key: JWK | None = None
    """By which clients sign instead of telling a secret."""

    def answer(self, request: Request) -> Answer:
        self.asked.append(request.path)
        if request.path.startswith("/files/"):
            return self._file(request.path.removeprefix("/files/"))
        if request.path == "/token":
            if not self._knows_client(request):
                return _json(401, {"error": "invalid_client"})
            return _json(200, {"access_token": TOKEN, "expires_in": "3600"})
        wanted = _basic("user") if self.auth == "basic" else f"Bearer {TOKEN}"
        if request.headers["authorization"] != wanted:
            return _json(401, {"errorCode": "UNAUTHENTICATED", "message": "who are you?"})
        return self._told(request)

    def _knows_client(self, request: Request) -> bool:
        if self.key is None:
            return request.headers["authorization"] == _basic("client")
        (assertion,) = parse_qs(request.body.decode())["assertion"]
        try:
            told = json.loads(JWT(jwt=assertion, key=self.key).claims)
        except JWException:
            return False
        return bool(told["iss"] == CLIENT and told["exp"] > told["iat"])

    def _told(self, request: Request) -> Answer:
        match request.path.strip("/").split("/"):
            case [""]:
                return _json(200, {})
            case ["shares"]:
                return self._page(request, [{"name": n} for n in _heads(self.tables)])
            case ["shares", share, "all-tables"]:
                names = [name.split(".") for name in sorted(self.tables)]
                listed = [
                    {"name": table, "schema": schema, "share": home}
                    for home, schema, table in names
                    if home == share
                ]
                return self._page(request, listed)
            case ["shares", share, "schemas", schema, "tables", table, verb]:
                name = f"{share}.{schema}.{table}"
                if name in self.tables:
                    return _table(request, name, self.tables[name], verb)
        return _json(404, {"errorCode": "NOT_FOUND", "message": "no such thing"})

    def _page(self, request: Request, items: list[dict[str, str]]) -> Answer:
        start = int(request.params.get("pageToken", 0))
        page: dict[str, Any] = {"items": items[start : start + self.page_size]}
        if start + self.page_size < len(items):
            page["nextPageToken"] = str(start + self.page_size)
        return _json(200, page)

    def _file(self, path: str) -> Answer:
        name, _, file = path.partition("/")
        answer: Answer = (200, {}, (self.tables[name] / file).read_bytes())
        return self.broken.pop(0)(answer) if self.broken else answer


def profile(address: str, kind: str) -> dict[str, Any]:
    """A profile file of each kind the protocol has."""
    told = {"endpoint": address, "shareCredentialsVersion": 2}
    return {
        "bearer": {**told, "shareCredentialsVersion": 1, "bearerToken": TOKEN},
        "bearer_token": {**told, "type": "bearer_token", "bearerToken": TOKEN},
        "basic": {**told, "type": "basic", "username": USER, "password": PASSWORD},
        "oauth": {
            **told,
            "type": "oauth_client_credentials",
            "tokenEndpoint": f"{address}/token",
            "clientId": CLIENT,
            "clientSecret": CLIENT_SECRET,
        },
        "key": {
            **told,
            "type": "oauth_jwt_bearer_private_key_jwt",
            "auth": {
                "tokenEndpoint": f"{address}/token",
                "clientId": CLIENT,
                "issuer": "us",
                "audience": "the-share",
                "privateKey": {"privateKeyFile": KEY_FILE, "keyId": "1", "algorithm": "RS256"},
            },
        },
    }[kind]


def _table(request: Request, name: str, folder: Path, verb: str) -> Answer:
    table = DeltaTable(folder)
    protocol = table.protocol()
    headers = {"delta-table-version": str(table.version())}
    if verb == "version":
        return 200, headers, b""
    needs_delta = protocol.min_reader_version > 1
    if needs_delta and "delta" not in request.headers.get("delta-sharing-capabilities", ""):
        told = "unsupported features; use responseformat=delta"
        return _json(400, {"errorCode": "INVALID", "message": told})
    protocol_line, metadata, adds = _state(folder)
    url = f"{request.host}/files/{name}"
    if needs_delta:
        headers["delta-sharing-capabilities"] = "responseformat=delta"
        lines: list[Any] = [
            {"protocol": {"deltaProtocol": protocol_line}},
            {"metaData": {"deltaMetadata": metadata}},
        ]
        files = [{"file": {"id": add["path"], "deltaSingleAction": {"add": add}}} for add in adds]
        for add in adds:
            add["path"] = f"{url}/{add['path']}"
            _share_vector(add, folder, url)
    else:
        lines = [{"protocol": {"minReaderVersion": 1}}, {"metaData": metadata}]
        files = [
            {
                "file": {
                    "url": f"{url}/{add['path']}",
                    "id": add["path"],
                    "partitionValues": add["partitionValues"],
                    "size": add["size"],
                }
            }
            for add in adds
        ]
    lines += files if verb == "query" else []
    return 200, headers, "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def _state(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Protocol, metadata and files, by the log alone."""
    protocol: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    adds: dict[str, dict[str, Any]] = {}
    for commit in sorted((folder / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in commit.read_text().splitlines()]
        # A file that gets a new vector is removed and added, in either order.
        for removed in [each["remove"] for each in actions if "remove" in each]:
            adds.pop(removed["path"], None)
        for action in actions:
            protocol = action.get("protocol", protocol)
            metadata = action.get("metaData", metadata)
            if added := action.get("add"):
                adds[added["path"]] = added
    return protocol, metadata, list(adds.values())


def _share_vector(add: dict[str, Any], folder: Path, url: str) -> None:
    """With the address of the file that holds it, which the log names by a UUID in base 85."""
    vector = add.get("deletionVector")
    if vector and vector["storageType"] == "u":
        number = UUID(bytes=_base85(vector["pathOrInlineDv"][-20:]))
        (file,) = folder.rglob(f"deletion_vector_{number}.bin")
        shared = f"{url}/{file.relative_to(folder)}"
        add["deletionVector"] = {**vector, "storageType": "p", "pathOrInlineDv": shared}


def _base85(text: str) -> bytes:
    digits = string.digits + string.ascii_letters + ".-:+=^!/*?&<>()[]{}@%$#"
    parts = [text[i : i + 5] for i in range(0, len(text), 5)]
    numbers = [sum(digits.index(c) * 85 ** (4 - i) for i, c in enumerate(part)) for part in parts]
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def _heads(names: Mapping[str, Path]) -> list[str]:
    return sorted({name.partition(".")[0] for name in names})


def _basic(who: str) -> str:
    return "Basic " + base64.b64encode(BASICS[who].encode()).decode()


def _json(status: int, content: object) -> Answer:
    return status, {"content-type": "application/json"}, json.dumps(content).encode()
