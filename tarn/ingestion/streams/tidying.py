"""Small files of a stream become few while it runs.

A commit every second makes a file every second. Those are put together in a thread of their own,
by the rules of `tarn maintain`: readers and the stream itself go on meanwhile.
"""

import logging
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

from tarn.storage.lake import Lake
from tarn.storage.upkeep.maintain import FAILURES, rewritten

log = logging.getLogger(__name__)

EVERY = 60
"""Commits of a table."""


class Tidier:
    """Keeps the tables of one system tidy."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._commits: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(1, "tidy")
        self._under_way: Future[None] | None = None

    def committed(self, name: str) -> None:
        """A table has one file more."""
        self._commits[name] += 1
        is_free = self._under_way is None or self._under_way.done()
        if self._commits[name] >= EVERY and is_free:
            self._commits[name] = 0
            self._under_way = self._pool.submit(self._tidy, name)

    def close(self) -> None:
        """Leave what has not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _tidy(self, name: str) -> None:
        try:
            rewritten(self.lake, name, datetime.now(UTC))
        except FAILURES as failure:
            log.info("%s: not compacted: %s", name, failure)
