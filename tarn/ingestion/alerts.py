"""Tells a webhook, in the form that Slack and its like take, what a load met: new drift, a table
that begins to fail, and one that loads again.

`TARN_ALERT_WEBHOOK` is its address; it may hold a token, so no message repeats it.
"""

import logging
from collections.abc import Iterator, Sequence, Set
from datetime import datetime

import requests  # type: ignore[import-untyped]

from tarn.ingestion.ledger import ALL, TableLoad
from tarn.settings import Settings
from tarn.storage.lake import Lake
from tarn.storage.loads import histories

log = logging.getLogger(__name__)

WEBHOOK = "TARN_ALERT_WEBHOOK"
_SECONDS = 10


def alert(home: Settings, lake: Lake, tables: Sequence[TableLoad], began: datetime) -> None:
    """Send what is worth it. A webhook that does not answer is told of, and fails nothing.

    `began` is when the load did: what failed before it is told already.
    """
    address = home.variables.get(WEBHOOK)
    if not address or not tables:
        return
    lines = list(_lines(tables, _failing(lake, tables[0].system, began)))
    if not lines:
        return
    try:
        answer = requests.post(address, json={"text": "\n".join(lines)}, timeout=_SECONDS)
        reason = "" if answer.ok else f"it answered {answer.status_code}"
    except (requests.RequestException, ValueError) as error:
        reason = type(error).__name__
    if reason:
        log.warning("no alert was sent to %s: %s", WEBHOOK, reason)


def _failing(lake: Lake, system: str, began: datetime) -> set[str]:
    """The tables of a system whose last load before a moment failed."""
    known = {table: one for (name, table), one in histories(lake, began).items() if name == system}
    latest = max((each.tried_at for each in known.values()), default=began)
    # That a system could not be opened says nothing once it was.
    return {
        table
        for table, each in known.items()
        if each.has_failed and (table != ALL or each.tried_at == latest)
    }


def _lines(tables: Sequence[TableLoad], failing: Set[str]) -> Iterator[str]:
    for table in tables:
        name = f"{table.system}.{table.table}"
        if table.status == "failed" and table.table not in failing:
            yield f"{name} failed: {table.error}"
        if table.status != "failed" and table.table in failing:
            yield f"{name} loads again"
        for change in table.changes:
            yield f"{name}: {change.told} ({change.verdict})"
    if ALL in failing and not any(table.table == ALL for table in tables):
        yield f"{tables[0].system} can be opened again"
