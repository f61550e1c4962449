"""Reads a live page again and again for all who look at it, and only while somebody does."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tarn.errors import TarnError
from tarn.serving.live.drawing import Page, draw
from tarn.storage.lake import Lake
from tarn.storage.live import Live
from tarn.strict_yaml import duration

log = logging.getLogger(__name__)

_STILL_HERE = 5.0
"""Seconds after which a viewer who heard nothing is told that the connection is not lost."""


@dataclass(frozen=True)
class State:
    """All of a page at one moment."""

    head: dict[str, Any]
    """What is true of the page as a whole. Times are milliseconds since 1970."""
    tiles: Sequence[str]
    """JSON by tile."""


class Reader:
    """Reads pages of one lake, one at a time and each from one state of the streams."""

    def __init__(self, lake: Lake) -> None:
        self._live = Live(lake)
        self._thread = ThreadPoolExecutor(1, "live")

    async def read(self, page: Page) -> State:
        """The page now."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._read, page)

    def _read(self, page: Page) -> State:
        try:
            self._live.refresh()
            with self._live.cursor() as cursor:
                tiles = [draw(page, number, cursor) for number in range(len(page.run.tiles))]
        except TarnError as failure:
            return State({"now": _now(), "trouble": str(failure)}, [])
        streams = [
            {"name": name.removeprefix("raw_"), "at": int(at.committed_at.timestamp() * 1000)}
            for name, at in sorted(self._live.streams.items())
            if name in page.reads
        ]
        head = {"now": _now(), "streams": streams, "release": self._live.release}
        return State(head, [json.dumps(tile, allow_nan=False) for tile in tiles])


class Feed:
    """One page's states, as they come."""

    def __init__(self, page: Page, reader: Reader) -> None:
        self._page, self._reader = page, reader
        self._viewers: set[asyncio.Queue[State]] = set()
        self._last: State | None = None
        self._task: asyncio.Task[None] | None = None

    async def events(self) -> AsyncGenerator[str, None]:
        """Server-sent events for one viewer: first all tiles, then those that changed."""
        queue: asyncio.Queue[State] = asyncio.Queue(1)
        self._viewers.add(queue)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read_on())
        elif self._last is not None:
            queue.put_nowait(self._last)
        sent: dict[int, str] = {}
        try:
            while True:
                try:
                    state = await asyncio.wait_for(queue.get(), _STILL_HERE)
                except TimeoutError:
                    yield "event: here\ndata:\n\n"
                    continue
                changed = {i: tile for i, tile in enumerate(state.tiles) if sent.get(i) != tile}
                sent |= changed
                yield _event(state, changed)
        finally:
            self._viewers.discard(queue)

    async def _read_on(self) -> None:
        """Until nobody looks any more."""
        every = duration(self._page.run.refresh).total_seconds()
        while self._viewers:
            began = time.monotonic()
            try:
                self._last = await self._reader.read(self._page)
            except Exception:
                # One bad reading must not leave the page waiting for ever.
                log.exception("%s: could not be read", self._page.run.page)
                self._last = State({"now": _now(), "trouble": "an error; see the server's log"}, [])
            for queue in self._viewers:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(self._last)
            await asyncio.sleep(max(every - (time.monotonic() - began), every / 2))
        self._last = None


def _event(state: State, changed: dict[int, str]) -> str:
    tiles = ", ".join(f'"{number}": {tile}' for number, tile in changed.items())
    return f'data: {{"head": {json.dumps(state.head)}, "tiles": {{{tiles}}}}}\n\n'


def _now() -> int:
    return int(time.time() * 1000)
