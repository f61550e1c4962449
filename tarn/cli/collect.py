"""The verb that receives events: an HTTP server, and their load at intervals."""

import socket
import time
from collections import Counter
from threading import Event, Thread
from typing import TYPE_CHECKING

import click

from tarn.cli.console import lake, say
from tarn.errors import TarnError
from tarn.settings import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarn.ingestion.declarations import Declared


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8810, show_default=True, help="0 takes a free one.")
@click.option(
    "--every",
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Load what came so often; 0 leaves that to tarn ingest.",
)
def collect(host: str, port: int, every: int) -> None:
    """Receive the events of all systems of kind webhook, until Ctrl-C."""
    import uvicorn

    from tarn.ingestion.collector import app

    systems = _webhooks()
    counts: Counter[str] = Counter()
    listener = listen(host, port)
    config = uvicorn.Config(
        app(systems, lake(), counts), log_level="warning", timeout_graceful_shutdown=10
    )
    stop = Event()
    Thread(target=_land, args=(systems, counts, every, stop), daemon=True).start()
    url = f"http://{host}:{listener.getsockname()[1]}"
    for path in (f"/{each.name}/{table}" for each in systems for table in each.system.tables):
        say(f"collecting at {url}{path}")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        stop.set()


def _webhooks() -> "Sequence[Declared]":
    """The systems that receive events, with their secrets."""
    from tarn.ingestion.declarations import FOLDER, declared

    home = settings()
    folder = home.project_dir / FOLDER
    found = [each for each in declared(folder) if each.system.kind == "webhook"]
    if not found:
        raise TarnError("no system of kind webhook is declared", str(folder), "add one")
    return [each.resolved(home) for each in found]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises TarnError if it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        fix = "choose another --host or --port"
        raise TarnError(f"cannot listen: {error}", f"{host}:{port}", fix) from error
    return listener


def _land(systems: "Sequence[Declared]", counts: Counter[str], every: int, stop: Event) -> None:
    """Load what came, also before this start, and tell how much it was."""
    from tarn.ingestion.engine import ingest

    before: Counter[str] = Counter()
    began = time.monotonic()
    while not stop.wait(every or 60):
        new, seconds = counts - before, time.monotonic() - began
        before, began = Counter(counts), time.monotonic()
        for table, events in new.items():
            say(f"{table}: {events:,} events came, {events / seconds:,.1f} a second")
        if every:
            for load in ingest([each.name for each in systems]):
                for each in load.tables:
                    if each.error:
                        say(f"failed: {each.error}")
                    elif each.counts.moved:
                        say(f"{load.system}.{each.table}: {each.counts.accepted:,} rows landed")
