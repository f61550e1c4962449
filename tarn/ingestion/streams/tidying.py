"""Small files of a stream become few while it runs, and its log stays short.

A commit every second makes a file and a log entry every second. Files are put together in a thread
of their own, by the rules of `tarn maintain`: readers and the stream itself go on meanwhile.
"""

import logging
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

from tarn.storage.lake import Lake
from tarn.storage.upkeep.maintain import FAILURES, pinned_versions, rewritten
from tarn.storage.upkeep.vacuum import thin

log = logging.getLogger(__name__)

EVERY = 60
"""Commits of a table after which its files are put together."""
_THIN_EVERY = 10
"""So many times of that make one of the log's: it looks at all releases."""


class Tidier:
    """Keeps the tables of one system tidy."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._commits: Counter[str] = Counter()
        self._times: Counter[str] = Counter()
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
        now = datetime.now(UTC)
        try:
            rewritten(self.lake, name, now)
            self._times[name] += 1
            if self._times[name] % _THIN_EVERY == 1:
                thin(self.lake, name, pinned_versions(self.lake, now).get(name, ()))
        except FAILURES as failure:
            log.info("%s: not compacted: %s", name, failure)
