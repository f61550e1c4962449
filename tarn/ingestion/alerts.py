"""Tells a webhook, in the form that Slack and its like take, what a load met: new drift, failures.

`TARN_ALERT_WEBHOOK` is its address; it may hold a token, so no message repeats it.
"""

import logging
from collections.abc import Iterator, Sequence

import requests  # type: ignore[import-untyped]

from tarn.ingestion.ledger import TableLoad
from tarn.settings import Settings

log = logging.getLogger(__name__)

WEBHOOK = "TARN_ALERT_WEBHOOK"
_SECONDS = 10


def alert(home: Settings, tables: Sequence[TableLoad]) -> None:
    """Send what is worth it. A webhook that does not answer is told of, and fails nothing."""
    address = home.variables.get(WEBHOOK)
    lines = list(_lines(tables))
    if not address or not lines:
        return
    try:
        answer = requests.post(address, json={"text": "\n".join(lines)}, timeout=_SECONDS)
        reason = "" if answer.ok else f"it answered {answer.status_code}"
    except (requests.RequestException, ValueError) as error:
        reason = type(error).__name__
    if reason:
        log.warning("no alert was sent to %s: %s", WEBHOOK, reason)


def _lines(tables: Sequence[TableLoad]) -> Iterator[str]:
    for table in tables:
        name = f"{table.system}.{table.table}"
        if table.status == "failed":
            yield f"{name} failed: {table.error}"
        for change in table.changes:
            yield f"{name}: {change.told} ({change.verdict})"
