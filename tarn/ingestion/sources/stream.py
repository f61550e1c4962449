"""A stream as it looks before anything lands: some of its messages, as rows."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import dlt

from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.landed import Desk, Landed
from tarn.ingestion.sources import Extract, Offered, Rejected, Source
from tarn.ingestion.streams.landing import Landing
from tarn.ingestion.streams.quarantine import MESSAGE
from tarn.ingestion.streams.transports import transport
from tarn.settings import Settings

_SAMPLE = 1_000
"""Messages from which columns and types are found."""


class StreamSource(Source):
    """Looks at messages without reading on in the stream."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared, self.home = declared, home
        self.transport = transport(declared, home)
        self.secrets = self.transport.secrets

    @property
    def tables(self) -> Mapping[str, Table]:
        return self.declared.system.tables

    def extract(self, table: str, landed: Landed) -> Extract | None:
        batches = self.transport.sample(table, _SAMPLE)
        if not batches:
            return None
        desk: Desk = landed.desk
        landing = Landing(desk, self.declared, table, self.transport, self.home)
        rows, bad = landing.looked_at(batches)
        unread = zip(bad.places, bad.texts, bad.reasons, strict=True)
        rejected = [Rejected({MESSAGE: text}, reason, place) for place, text, reason in unread]

        def items() -> Iterator[Any]:
            return chain(rejected, [rows])

        return Extract(lambda: dlt.resource(items(), name=table), types=landing.types)

    def check(self) -> list[str]:
        return self.transport.check()

    def offered(self) -> list[Offered]:
        return self.transport.offered()
