"""How streams are watched."""

from collections.abc import Iterator
from contextlib import contextmanager

from tarn.ingestion.streams import Place
from tarn.storage.lake import Lake


class Metrics:
    @contextmanager
    def served(self, port: int) -> Iterator[int]:
        yield port


class Gauges:
    """What the consumer of one system tells of itself."""

    def __init__(
        self, lake: Lake, system: str, metrics: Metrics | None = None, is_continuous: bool = True
    ) -> None: ...

    def read(self, place: Place, messages: int) -> None: ...

    def committed(
        self, table: str, rows: int, quarantined: int, deduplicated: int, seconds: float
    ) -> None: ...

    def lag(self, place: Place, messages: int | None) -> None: ...

    def event(self, place: Place, sent_at: int) -> None: ...

    def trouble(self, text: str | None) -> None: ...

    def forget(self, place: Place) -> None: ...

    def close(self) -> None: ...
