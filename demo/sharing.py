"""The market researcher's Delta Sharing server: household demographics, read by the open protocol.

It answers in the protocol's Parquet format and hands out signed addresses of files, which expire.
"""

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from demo import source
from demo.bearer import bearer_of
from demo.source import report

PREFIX = "/delta-sharing"
SHARE, SCHEMA, TABLE = "market_research", "panel", "household_demographics"
THE_SHARE = {"name": SHARE}
THE_SCHEMA = {"name": SCHEMA, "share": SHARE}
THE_TABLE = {"name": TABLE, "schema": SCHEMA, "share": SHARE}
URL_LIFETIME_SECONDS = 900

Json = dict[str, Any]


def make(folder: Path) -> None:
    """Write the shared Delta table into `folder`."""
    with source.connect() as session:
        rows = session.sql("from demographics order by household_id").to_arrow_reader()
        write_deltalake(folder / TABLE, rows, name=TABLE)
    report(f"market research: Delta table {TABLE}")


def profile(url: str, token: str) -> str:
    """Return the profile file that a recipient opens the share with."""
    endpoint = f"{url}{PREFIX}"
    return json.dumps({"shareCredentialsVersion": 1, "endpoint": endpoint, "bearerToken": token})


def app(folder: Path, token: str) -> FastAPI:
    """Build the server of the table in `folder` for whoever bears `token`."""
    server = FastAPI(title="Delta Sharing", docs_url=None, redoc_url=None)
    sign = _signer(secrets.token_bytes(32))
    allowed = [Depends(bearer_of(token)), Depends(_known_names)]
    server.include_router(_listings(), prefix=PREFIX, dependencies=allowed)
    server.include_router(_table(folder / TABLE, sign), prefix=PREFIX, dependencies=allowed)
    server.include_router(_files(folder / TABLE, sign))
    server.add_exception_handler(AnyHTTPException, _protocol_error)
    return server


def _listings() -> APIRouter:
    """Shares, schemas and tables: one of each, so no list has a second page."""
    router = APIRouter()

    def lists(path: str, item: Json) -> None:
        async def listing() -> Json:
            return {"items": [item]}

        router.get(path)(listing)

    lists("/shares", THE_SHARE)
    lists("/shares/{share}/schemas", THE_SCHEMA)
    lists("/shares/{share}/schemas/{schema}/tables", THE_TABLE)
    lists("/shares/{share}/all-tables", THE_TABLE)

    @router.get("/shares/{share}")
    async def share() -> Json:
        return {"share": THE_SHARE}

    return router


def _table(path: Path, sign: Callable[[str, int], str]) -> APIRouter:
    router = APIRouter(prefix="/shares/{share}/schemas/{schema}/tables/{table}")

    @router.get("/version")
    async def version() -> Response:
        return _lines(DeltaTable(path))

    @router.get("/metadata")
    async def metadata() -> Response:
        table = DeltaTable(path)
        return _lines(table, *_header(table))

    @router.post("/query")
    async def query(
        request: Request, version: Annotated[int | None, Body(embed=True, ge=0)] = None
    ) -> Response:
        try:
            table = DeltaTable(path, version=version)
        except DeltaError as error:
            raise HTTPException(400, f"version {version}: {error}") from None
        names = sorted(Path(uri).name for uri in table.file_uris())
        return _lines(table, *_header(table), *(_file(request, path / n, sign) for n in names))

    return router


def _lines(table: DeltaTable, *lines: Json) -> Response:
    body = "".join(f"{json.dumps(line)}\n" for line in lines)
    headers = {"Delta-Table-Version": str(table.version())}
    return Response(body, headers=headers, media_type="application/x-ndjson; charset=utf-8")


def _header(table: DeltaTable) -> tuple[Json, Json]:
    metadata = table.metadata()
    described = {
        "id": metadata.id,
        "name": metadata.name,
        "format": {"provider": "parquet"},
        "schemaString": table.schema().to_json(),
        "partitionColumns": metadata.partition_columns,
        "configuration": metadata.configuration,
    }
    return {"protocol": {"minReaderVersion": 1}}, {"metaData": described}


def _file(request: Request, file: Path, sign: Callable[[str, int], str]) -> Json:
    expires = int(time.time()) + URL_LIFETIME_SECONDS
    url = request.url_for("download", name=file.name)
    signed = url.include_query_params(expires=expires, signature=sign(file.name, expires))
    return {
        "file": {
            "url": str(signed),
            "id": hashlib.sha256(file.name.encode()).hexdigest(),
            "partitionValues": {},
            "size": file.stat().st_size,
            "expirationTimestamp": expires * 1000,
        }
    }


def _files(folder: Path, sign: Callable[[str, int], str]) -> APIRouter:
    """Data files, for whoever holds a signed address; ranges are honoured."""
    router = APIRouter()

    @router.api_route("/files/{name}", methods=["GET", "HEAD"])
    async def download(name: str, expires: int = 0, signature: str = "") -> Response:
        if not hmac.compare_digest(sign(name, expires).encode(), signature.encode()):
            raise HTTPException(403, "signature: not one this server gave out")
        if expires < time.time():
            raise HTTPException(403, "this address has expired; query the table again")
        return FileResponse(folder / name)

    return router


def _signer(key: bytes) -> Callable[[str, int], str]:
    """Sign a file's name and expiry with a key that lives as long as the server."""

    def sign(name: str, expires: int) -> str:
        return hmac.new(key, f"{name} {expires}".encode(), hashlib.sha256).hexdigest()

    return sign


async def _known_names(request: Request) -> None:
    """Refuse other shares, schemas and tables than the one there is. Case does not matter."""
    known = {"share": SHARE, "schema": SCHEMA, "table": TABLE}
    for kind, name in request.path_params.items():
        if name.lower() != known[kind]:
            raise HTTPException(404, f"{kind} {name}: no such {kind}; there is {known[kind]}")


async def _protocol_error(request: Request, error: Exception) -> Response:
    """Spell errors as the protocol does."""
    assert isinstance(error, AnyHTTPException)
    codes = {400: "MALFORMED_REQUEST", 401: "UNAUTHENTICATED", 403: "FORBIDDEN", 404: "NOT_FOUND"}
    code = codes.get(error.status_code, "ERROR")
    body = {"errorCode": code, "message": error.detail}
    return JSONResponse(body, error.status_code, headers=error.headers)
