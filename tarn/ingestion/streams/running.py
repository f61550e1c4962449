"""Runs the streams of a project side by side, each in a thread: for ever, or once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

from tarn.ingestion.declarations import Declared
from tarn.ingestion.engine import ingest, told
from tarn.ingestion.landed import Desk
from tarn.ingestion.ledger import TableLoad
from tarn.ingestion.streams.consumer import Stream, Wishes
from tarn.ingestion.streams.gauges import Metrics
from tarn.ingestion.streams.transports import TRANSPORTS
from tarn.ingestion.workspace import streaming
from tarn.settings import Settings
from tarn.storage.lake import Lake

log = logging.getLogger(__name__)

WEBHOOK = "webhook"
_WEBHOOK_SECONDS = 5.0
"""Between two loads of what `tarn collect` received."""


def is_stream(declared: Declared) -> bool:
    return declared.system.kind in TRANSPORTS


@dataclass
class Running:
    """The streams of one process."""

    streams: Mapping[str, Stream]
    failures: dict[str, str] = field(default_factory=dict)
    """Why a whole system stopped."""

    @property
    def failed(self) -> bool:
        return bool(self.failures) or any(each.failed for each in self.streams.values())


def run(
    systems: Sequence[Declared],
    home: Settings,
    wishes: Wishes,
    stop: Event,
    tell: Callable[[str], None],
    watch: Callable[[Running], None] = lambda running: None,
    metrics_port: int | None = None,
) -> Running:
    """Stream systems until `stop` is set, or once. One that fails does not stop the others.

    `watch` is called when all have begun, and is to return soon after `stop` is set.
    """
    lake = Lake.open(home)
    home.work_dir.mkdir(parents=True, exist_ok=True)
    metrics = Metrics()
    with ExitStack() as open_:
        if metrics_port is not None:
            port = open_.enter_context(metrics.served(metrics_port))
            tell(f"metrics: http://127.0.0.1:{port}/metrics")
        for each in systems:
            open_.enter_context(streaming(home.work_dir, each.name))
        folder = Path(open_.enter_context(TemporaryDirectory(dir=home.work_dir, prefix="stream-")))
        desk = open_.enter_context(closing(Desk(lake, folder)))
        resolved = [each.resolved(home) for each in systems]
        streams = {
            each.name: Stream(desk, each, home, folder, wishes, tell, metrics)
            for each in resolved
            if is_stream(each)
        }
        running = Running(streams)
        threads = [
            Thread(target=_run, args=(running, each, stop, tell), name=name)
            for name, each in streams.items()
        ]
        webhooks = [each.name for each in systems if each.system.kind == WEBHOOK]
        if webhooks:
            threads.append(Thread(target=_land, args=(running, webhooks, wishes, stop, tell)))
        for thread in threads:
            thread.start()
        watcher = Thread(target=watch, args=(running,), daemon=True)
        watcher.start()
        for thread in threads:
            thread.join()
        stop.set()
        watcher.join()
    return running


def once(declared: Declared, desk: Desk, home: Settings, folder: Path) -> list[TableLoad]:
    """Land all that waits of one system, whose variables are resolved; how each table went."""
    with streaming(home.work_dir, declared.name):
        stream = Stream(desk, declared, home, folder, Wishes(once=True), log.info)
        stream.run(Event())
        return stream.results()


def _run(running: Running, stream: Stream, stop: Event, tell: Callable[[str], None]) -> None:
    """In a thread of its own."""
    name = stream.declared.name
    try:
        stream.run(stop)
    except Exception as failure:
        error = told(failure, stream.declared, ("connection",), stream.transport.secrets)
        log.debug("%s", name, exc_info=True)
        running.failures[name] = error
        tell(f"stopped: {error}")


def _land(
    running: Running,
    systems: Sequence[str],
    wishes: Wishes,
    stop: Event,
    tell: Callable[[str], None],
) -> None:
    """Load what came to webhooks, now and then."""
    while True:
        for load in ingest(systems):
            for each in load.tables:
                if each.error:
                    if wishes.once:
                        running.failures[load.system] = each.error
                    tell(f"failed: {each.error}")
                elif each.counts.moved:
                    tell(f"{load.system}.{each.table}: {each.counts.accepted:,} rows landed")
        if wishes.once or stop.wait(_WEBHOOK_SECONDS):
            return
