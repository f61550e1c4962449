"""The verb that streams: messages land as they come."""

import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from threading import Event
from time import monotonic, time
from typing import TYPE_CHECKING

import click

from tarn.cli.alerts import watched
from tarn.cli.console import say
from tarn.errors import TarnError
from tarn.settings import settings

if TYPE_CHECKING:
    from tarn.ingestion.declarations import Declared
    from tarn.ingestion.streams.running import Running

_EVERY = 10.0
"""Seconds between two tellings."""


@click.command()
@click.argument("systems", nargs=-1)
@click.option("--once", is_flag=True, help="Stop when what waited at the start has landed.")
@click.option(
    "--accept-gap",
    is_flag=True,
    help="Go on after messages that the broker no longer has; the gap is noted in tarn.drift.",
)
@click.option(
    "--metrics",
    "metrics_port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve metrics for Prometheus on 127.0.0.1; 0 takes any free port.",
)
def stream(systems: Sequence[str], once: bool, accept_gap: bool, metrics_port: int | None) -> None:
    """Land the messages of stream systems as they come: of those named, or all; until Ctrl-C.

    Beside it the project's alerts are evaluated.
    """
    from tarn.ingestion.streams.consumer import Wishes
    from tarn.ingestion.streams.running import run

    chosen = _chosen(systems)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    for each in chosen:
        say(f"streaming {each.name}: {', '.join(each.system.tables)}")
    watch, wishes = _Watch(stop), Wishes(once, accept_gap)
    with nullcontext() if once else watched(stop):
        running = run(chosen, settings(), wishes, stop, _tell, watch, metrics_port)
    watch.tell_all(running)
    sys.exit(running.failed)


def _chosen(systems: Sequence[str]) -> "Sequence[Declared]":
    from tarn.ingestion.declarations import FOLDER, declared
    from tarn.ingestion.engine import quiet_dlt
    from tarn.ingestion.streams.running import WEBHOOK, is_stream

    quiet_dlt()
    folder = settings().project_dir / FOLDER
    found = declared(folder, systems)
    chosen = [each for each in found if is_stream(each) or each.system.kind == WEBHOOK]
    wrong = [each for each in found if each not in chosen]
    if systems and wrong:
        kind = wrong[0].system.kind
        raise TarnError(
            f"a system of kind {kind} does not stream", wrong[0].name, "load it by tarn ingest"
        )
    if not chosen:
        raise TarnError("no system streams", str(folder), "add one of kind kafka, mqtt …")
    return chosen


class _Watch:
    """Tells now and then how far the tables are."""

    def __init__(self, stop: Event) -> None:
        self.stop = stop
        self._rows: dict[str, int] = {}
        self._at = monotonic()

    def __call__(self, running: "Running") -> None:
        while not self.stop.wait(_EVERY):
            self.tell_all(running)

    def tell_all(self, running: "Running") -> None:
        """A line for each table that has moved, or has something to wait for."""
        at = monotonic()
        seconds, self._at = max(at - self._at, 0.001), at
        for system, each in running.streams.items():
            for table, progress in each.progress.items():
                name = f"{system}.{table}"
                came = progress.rows - self._rows.get(name, 0)
                self._rows[name] = progress.rows
                if came or progress.lag:
                    lag = "" if progress.lag is None else f", {progress.lag:,} waiting"
                    behind = max(0.0, time() - progress.sent_at / 1e6)
                    age = f", last sent {behind:,.1f} s ago" if progress.sent_at else ""
                    _tell(f"{name}: {came / seconds:,.0f} rows/s, {progress.rows:,} rows{lag}{age}")


def _tell(text: str) -> None:
    """An event, with its time."""
    from tarn.storage.clock import now

    say(f"{now():%Y-%m-%d %H:%M:%S} {text}")
