"""The web server of live pages. Whoever opens one shows the token first, in the address."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse

from tarn.errors import TarnError
from tarn.serving import pages
from tarn.serving.dashboards import framed
from tarn.serving.declarations import read_exposures
from tarn.serving.live.declaration import Live
from tarn.serving.live.drawing import Page
from tarn.serving.live.feed import Feed, Reader
from tarn.serving.metrics import MetricCompiler
from tarn.serving.project import parsed
from tarn.serving.tiles import Chart, Figure, Table
from tarn.settings import Settings
from tarn.storage.lake import Lake
from tarn.strict_yaml import duration

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:;"
    " connect-src 'self'"
)
_HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_SCRIPTS = ("live.js", "map.js")
_A_YEAR = 365 * 24 * 3600


def read_pages(home: Settings) -> list[Page]:
    """The live pages that the project declares. dbt reads it for that, in seconds."""
    target = parsed(home, "live")
    manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    return pages_of(manifest, home, MetricCompiler(target / "semantic_manifest.json"))


def pages_of(manifest: Mapping[str, Any], home: Settings, metrics: MetricCompiler) -> list[Page]:
    """The live pages of a manifest, their metrics compiled."""
    found = []
    for exposure in read_exposures(manifest, home.project_dir):
        if isinstance(exposure.run, Live):
            where = f"{exposure.file}: {exposure.name}"
            queries = tuple(_sql(tile, metrics, where) for tile in exposure.run.tiles)
            reads = frozenset(_sources(manifest, exposure.unique_id))
            found.append(Page(exposure, exposure.run, queries, reads))
    if not found:
        fix = "declare one; docs/how-to/watch-live.md says how"
        raise TarnError("no exposure of kind live is declared", "models/exposures", fix)
    return found


def _sql(tile: object, metrics: MetricCompiler, where: str) -> str:
    if not isinstance(tile, Figure | Chart | Table):
        return ""
    try:
        return tile.sql or metrics.sql_of(tile)
    except TarnError as error:
        raise TarnError(error.what, f"{where}: tile {tile.title!r}", error.fix) from None


def _sources(manifest: Mapping[str, Any], node: str) -> set[str]:
    """`schema.table` of the source tables a node is made of, however far away."""
    waiting, seen = [node], {node}
    while waiting:
        parents = set(manifest["parent_map"].get(waiting.pop(), ())) - seen
        seen |= parents
        waiting += parents
    sources = (manifest["sources"].get(each) for each in seen)
    return {f"{each['schema']}.{each['identifier']}" for each in sources if each}


def app(found: Sequence[Page], lake: Lake, token: str) -> FastAPI:
    """All pages behind one token."""
    api = FastAPI(title="Tarn live", docs_url=None, redoc_url=None, openapi_url=None)
    reader = Reader(lake)
    feeds = {page.run.page: Feed(page, reader) for page in found}
    by_name = {page.run.page: page for page in found}
    door = _Door(token)

    @api.middleware("http")
    async def guarded(request: Request, go_on: Any) -> Response:
        response: Response
        if door.is_key(request.query_params.get("token", "")):
            response = door.let_in(request)
        elif not door.is_key(request.cookies.get(door.cookie, "")):
            said = "Open the address that tarn live printed: it holds the token.\n"
            response = Response(said, 401, media_type="text/plain")
        else:
            response = await go_on(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @api.get("/")
    async def index() -> Response:
        if len(found) == 1:
            return RedirectResponse(f"/{found[0].run.page}", 303)
        return _page("live_index.html.j2", listed=found)

    @api.get("/assets/vega.js")
    def vega() -> Response:
        return _script(pages.library())

    @api.get("/assets/{name}")
    def script(name: str) -> Response:
        if name not in _SCRIPTS:
            return Response(status_code=404)
        return _script(files("tarn.serving").joinpath("templates", name).read_text("utf-8"))

    @api.get("/{page}")
    def show(page: str) -> Response:
        if page not in by_name:
            return Response("No such page.\n", 404, media_type="text/plain")
        tiles = by_name[page].run.tiles
        specs = {i: _named(tile) for i, tile in enumerate(tiles) if isinstance(tile, Chart)}
        return _page(
            "live.html.j2",
            page=by_name[page],
            run=by_name[page].run,
            specs=specs,
            themes=pages.themes(),
            stale_after=duration(by_name[page].run.stale_after) / timedelta(milliseconds=1),
        )

    @api.get("/{page}/events")
    async def events(page: str) -> Response:
        if page not in feeds:
            return Response(status_code=404)
        return StreamingResponse(feeds[page].events(), media_type="text/event-stream")

    return api


class _Door:
    """Lets in who knows the token; takes as long for any wrong one."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        # Named by the token, so that two servers of one machine do not take each other's.
        self.cookie = f"tarn_live_{hashlib.sha256(self._token).hexdigest()[:8]}"

    def is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)

    def let_in(self, request: Request) -> Response:
        """Keep the token in a cookie, and go on without it in the address."""
        response = RedirectResponse(request.url.path, 303)
        secure = request.url.scheme == "https"
        response.set_cookie(
            self.cookie,
            self._token.decode(),
            max_age=_A_YEAR,
            httponly=True,
            samesite="lax",
            secure=secure,
        )
        return response


def _named(tile: Chart) -> dict[str, Any]:
    """The tile's spec, whose data the page's script fills in."""
    return {**framed(tile), "data": {"name": "rows"}}


def _page(template: str, **values: Any) -> Response:
    return HTMLResponse(pages.render(template, policy=_POLICY, as_of=None, **values))


def _script(text: str) -> Response:
    return Response(
        text, media_type="text/javascript", headers={"Cache-Control": "private, max-age=600"}
    )
