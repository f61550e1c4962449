"""A business that stops, then its pipe: how long until the right people are told the right thing.

Events go to a broker, are landed by `tarn stream` and watched by `tarn alerts`, each a process of
its own. Each round one kind of event stops while the other goes on, until the webhook hears of it,
and comes again, until it hears that too. At the end all stop, and at last old ones come.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from threading import Event, Thread

import yaml

from tests.drills.telling import Drill
from tests.engine.conftest import BIN, ROOT
from tests.engine.kafka import Topic, broker
from tests.engine.library import Library
from tests.engine.test_dbt import PROJECT
from tests.engine.upstreams import Answer, Request, serving

_WINDOW, _SILENT = 5, 8
"""Seconds: in which one must happen, and after which there is no data."""
_LATE = 20
_PACE = 0.1
_LONGEST = 120.0
_SYSTEM = """
system: shop
description: For a drill.
owner: {{name: Us, email: us@example.com}}
kind: kafka
connection: {{bootstrap_servers: "{address}"}}
tables:
  orders: {{event_time: occurred_at, commit_every: 500ms, columns: {{occurred_at: timestamp}}}}
  clicks: {{event_time: occurred_at, commit_every: 500ms, columns: {{occurred_at: timestamp}}}}
"""
_SOURCES = "sources: [{name: shop, schema: raw_shop, tables: [{name: orders}, {name: clicks}]}]"
_VIEW = """{{ config(materialized='view', schema='staging') }}
select * from {{ source('shop', 'orders') }}"""
_ALERT = {
    "kind": "alert",
    "title": "No orders",
    "sql": "select count(*) from staging.stg_orders"
    " where occurred_at >= $window_start and occurred_at < $window_end",
    "window": f"{_WINDOW}s",
    "every": "1s",
    "floor": 1,
    "resolve_after": "0s",
    "heartbeat": {
        "source": "shop.clicks",
        "event_time": "occurred_at",
        "silent_after": f"{_SILENT}s",
        "late_after": f"{_LATE}s",
    },
    "notify": [{"kind": "webhook", "url": "${HOOK}"}],
}


class _Producer(Thread):
    """Sends an event of a kind every so often, while it is on."""

    def __init__(self, topic: Topic) -> None:
        super().__init__(daemon=True)
        self.topic, self.is_on, self.over = topic, Event(), Event()
        self.late = timedelta()
        self.last_at = 0.0

    def run(self) -> None:
        while not self.over.wait(_PACE):
            if self.is_on.is_set():
                self.send()

    def send(self) -> None:
        occurred_at = datetime.now(UTC) - self.late
        self.last_at = time.time()
        text = occurred_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.topic.send(json.dumps({"event_id": time.time_ns(), "occurred_at": text}).encode())


class _Heard:
    """What the webhook was told, and when."""

    def __init__(self) -> None:
        self.texts: list[tuple[float, str]] = []

    def answer(self, request: Request) -> Answer:
        self.texts.append((time.time(), json.loads(request.body)["text"]))
        return 200, {}, b"ok"

    def next(self, after: int) -> tuple[float, str]:
        """The message after so many."""
        end = time.monotonic() + _LONGEST
        while len(self.texts) <= after:
            if time.monotonic() > end:
                return time.time(), "nothing was heard"
            time.sleep(0.02)
        return self.texts[after]


def drill(seed: int, rounds: int, folder: Path) -> Drill:
    told, heard = Drill("alert", seed, rounds), _Heard()
    with ExitStack() as stack:
        address = stack.enter_context(broker())
        hook = stack.enter_context(serving(heard.answer))
        orders, clicks = (_Producer(Topic(address, name)) for name in ("orders", "clicks"))
        library = _project(folder / "project", address)
        for each in (orders, clicks):
            each.send()
            each.is_on.set()
            each.start()
            stack.callback(each.over.set)
        library.tarn("stream", "--once")
        _succeed(library, "dbt", "build")
        for verb in ("stream", "alerts"):
            stack.enter_context(_running(library, verb, hook))
        _settle(library, orders, told)
        seconds = [_round(orders, heard, told) for _ in range(rounds)]
        _pipe(orders, clicks, heard, told)
    if seconds:
        print(
            f"  from the last order to its alert: median {median(seconds):.1f} s, longest"
            f" {max(seconds):.1f} s, of which the window takes {_WINDOW} s",
            flush=True,
        )
    return told


def _project(folder: Path, address: str) -> Library:
    exposure = {
        "name": "no_orders",
        "type": "application",
        "owner": {"name": "Us", "email": "us@example.com"},
        "config": {"meta": {"run": _ALERT}},
    }
    files = {
        "profiles.yml": (ROOT / "profiles.yml").read_text(),
        "dbt_project.yml": PROJECT.format(macros=ROOT / "tarn/dbt/macros"),
        "ingestion/shop.yml": _SYSTEM.format(address=address),
        "models/shop.yml": _SOURCES,
        "models/stg_orders.sql": _VIEW,
        "models/one.sql": "select 1 as one",
        "models/alerts.yml": yaml.safe_dump({"exposures": [exposure]}),
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return Library(folder)


def _succeed(library: Library, *command: str) -> None:
    done = library.command(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def _running(library: Library, verb: str, hook: str) -> Iterator[None]:
    with (library.folder / f"{verb}.log").open("w") as log:
        process = subprocess.Popen(
            [str(BIN / "tarn"), verb],
            cwd=library.folder,
            env={**library.environment, "HOOK": hook},
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def _settle(library: Library, orders: _Producer, told: Drill) -> None:
    """Wait until what happens now is seen: before, nobody could miss it."""

    def is_fresh() -> bool:
        table = library.lake.table("raw_shop.orders")
        return table is not None and table.version() > version

    table = library.lake.table("raw_shop.orders")
    assert table is not None
    version = table.version() + 3
    told.check("events are landed as they come", _until(is_fresh))
    time.sleep(_WINDOW + 5)


def _until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + _LONGEST
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _round(orders: _Producer, heard: _Heard, told: Drill) -> float:
    """No order, and then orders again; seconds from the last order to its alert."""
    known = len(heard.texts)
    orders.is_on.clear()
    time.sleep(2 * _PACE)
    arrived, text = heard.next(known)
    took = arrived - orders.last_at
    told.did["outages"] += 1
    expected = text.startswith("No orders: 0 in the 5 s to")
    told.check("that nobody orders is told as such", expected, text)
    orders.is_on.set()
    _, text = heard.next(known + 1)
    told.check("that it is over is told", text.startswith("Resolved after"), text)
    time.sleep(_WINDOW)
    told.check("each is told once", len(heard.texts) == known + 2, str(heard.texts[known:]))
    return took


def _pipe(orders: _Producer, clicks: _Producer, heard: _Heard, told: Drill) -> None:
    """Nothing comes, and then only what is old."""
    known = len(heard.texts)
    for each in (orders, clicks):
        each.is_on.clear()
    texts = [text for _, text in (heard.next(known), heard.next(known + 1))]
    told.did["silences"] += 1
    told.check(
        "that nothing comes is told as such",
        any("no data: nothing of shop.clicks has been committed" in text for text in texts),
        str(texts),
    )
    clicks.late = timedelta(hours=1)
    time.sleep(_LATE)
    known = len(heard.texts)
    clicks.is_on.set()
    texts = [text for _, text in (heard.next(known), heard.next(known + 1))]
    told.did["old events"] += 1
    told.check(
        "that what comes is old is told as such",
        any("late data: rows of shop.clicks come in" in text for text in texts),
        str(texts),
    )
