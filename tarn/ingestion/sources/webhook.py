"""Events that `tarn collect` accepted and that wait in the lake."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dlt
import duckdb
from dlt.extract import DltSource

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.base import Table
from tarn.ingestion.declarations.webhook import EVENT_ID, RECEIVED_AT, WebhookSystem, WebhookTable
from tarn.ingestion.landed import Landed
from tarn.ingestion.masking import secrets_in
from tarn.ingestion.sources import Extract, Source
from tarn.ingestion.spool import Spool
from tarn.ingestion.unfinished import is_unfinished
from tarn.settings import Settings
from tarn.storage.clock import named_at
from tarn.storage.duck import quoted
from tarn.storage.lake import Lake

_LATEST = timedelta(days=1)
"""An event's segment is named no later than that after its receipt."""


class Webhook(Source):
    """The events of a system, as they wait when the load begins."""

    def __init__(self, declared: Declared, home: Settings) -> None:
        self.declared, self.home = declared, home
        assert isinstance(declared.system, WebhookSystem)
        self.secrets = frozenset(secrets_in(declared.system.connection.model_dump()))

    @property
    def tables(self) -> Mapping[str, Table]:
        """With the type of the column that the collector adds."""
        return {
            name: spec.model_copy(update={"columns": {RECEIVED_AT: "timestamp", **spec.columns}})
            for name, spec in self.declared.system.tables.items()
        }

    def extract(self, table: str, landed: Landed) -> Extract | None:
        self._check_not_again(table, landed)
        # The desk's may be an empty one to try things out in.
        lake = replace(Lake.open(self.home), is_rehearsal=landed.desk.lake.is_rehearsal)
        spool = Spool(lake, self.declared.name, table)
        segments = spool.segments()
        if not segments:
            return None

        def resource() -> DltSource:
            events = dlt.resource(_events(spool, segments), name=table)
            return DltSource(dlt.Schema(table), table, [events])

        return Extract(
            resource,
            is_objects=True,
            redelivered=self._redelivered(table, segments),
            is_changed=True,
            remember=lambda load_id: spool.drop(segments),
        )

    def check(self) -> list[str]:
        """How much waits."""
        lake = Lake.open(self.home)
        spools = [Spool(lake, self.declared.name, name) for name in self.declared.system.tables]
        return [
            f"{spool.table}: POST /{spool.system}/{spool.table} of tarn collect;"
            f" {len(spool.segments()):,} segments wait for a load"
            for spool in spools
        ]

    def _check_not_again(self, table: str, landed: Landed) -> None:
        """Events that are in the lake are nowhere else."""
        lake = landed.desk.lake
        if landed.is_anew and landed.kept and not is_unfinished(lake, landed.name):
            raise TarnError(
                "events come once, so there is nothing to read again",
                f"{landed.name} ({self.declared.file.where('tables', table)})",
                "nothing was written; load without --full-refresh or --backfill",
            )

    def _redelivered(self, table: str, segments: Sequence[str]) -> str:
        """A sender may repeat what it names at any time; what we named only comes twice if a load
        was killed before it dropped its segments."""
        spec = self.declared.system.tables[table]
        assert isinstance(spec, WebhookTable)
        if spec.id_header or spec.primary_key != (EVENT_ID,):
            return "true"
        since = named_at(segments[0]) - _LATEST
        return f"{quoted(RECEIVED_AT)} >= {duckdb.ConstantExpression(since)}"


def _events(spool: Spool, segments: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    for segment in segments:
        yield spool.read(segment)
