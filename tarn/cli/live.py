"""The server of live pages."""

import secrets
from urllib.parse import quote

import click

from tarn.cli.collect import listen
from tarn.cli.console import lake, say
from tarn.settings import settings

_VARIABLE = "TARN_LIVE_TOKEN"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8811, show_default=True, help="0 takes a free one.")
def live(host: str, port: int) -> None:
    """Serve the project's live pages, until Ctrl-C.

    The address it prints holds the token that opens them: TARN_LIVE_TOKEN, or a new one each
    time.
    """
    import uvicorn

    from tarn.serving.live.server import app, read_pages
    from tarn.storage import catalog

    here = lake()
    listener = listen(host, port)
    catalog.ensure(here)
    found = read_pages(settings())
    token = settings().variables.get(_VARIABLE) or secrets.token_urlsafe(24)
    config = uvicorn.Config(
        app(found, here, token), log_level="warning", timeout_graceful_shutdown=1
    )
    url = f"http://{host}:{listener.getsockname()[1]}"
    for page in found:
        say(f"{page.run.title}: {url}/{page.run.page}?token={quote(token)}")
    uvicorn.Server(config).run(sockets=[listener])
