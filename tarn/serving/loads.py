"""The site's page about loads: what failed or is late, and where every other table stands."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tarn.serving import pages
from tarn.serving.formats import NOTHING, show
from tarn.storage.loads import WORST_FIRST, TableStatus, span
from tarn.storage.streams import StreamStatus

PAGE = "loads.html"
CARD = {
    "href": PAGE,
    "title": "Loads",
    "about": "Whether every source table came in as scheduled, and what was kept out.",
}
_NO_BREAK = "\N{NO-BREAK SPACE}"
_WORDS = {"failed": "Failed", "late": "Late", "never": "Never loaded", "ok": "Up to date"}


def loads_page(tables: Sequence[TableStatus], at: datetime, **common: Any) -> str:
    """The page itself; the worst first."""
    counts = {state: sum(each.state == state for each in tables) for state in WORST_FIRST}
    dues = [each.due_at for each in tables if each.due_at]
    return pages.render(
        "loads.html.j2",
        **common,
        as_of=f"{show(at)} UTC",
        figures=[(state, _WORDS[state], counts[state]) for state in WORST_FIRST],
        tables=[_row(each) for each in tables],
        streams=[_stream(each, each.stream) for each in tables if each.stream],
        due_at=f"{min(dues).isoformat()}Z" if dues else "",
    )


def _row(each: TableStatus) -> dict[str, Any]:
    history = each.history
    succeeded = history if history and history.succeeded_at else None
    late = f" by {span(each.late_seconds)}".replace(" ", _NO_BREAK) if each.late_seconds else ""
    return {
        "system": each.system,
        "name": each.table,
        "state": each.state,
        "told": _WORDS[each.state] + (late if each.state == "late" else ""),
        "error": each.error,
        "succeeded": show(succeeded.succeeded_at) if succeeded else NOTHING,
        "rows": show(succeeded.rows) if succeeded else NOTHING,
        "took": span(succeeded.seconds) if succeeded else NOTHING,
        "next": show(each.due_at) if each.due_at else NOTHING,
        "drift": show(each.drift) if each.drift else "",
        "quarantined": show(each.quarantined) if each.quarantined else "",
    }


def _stream(each: TableStatus, stream: StreamStatus) -> dict[str, str]:
    return {
        "system": each.system,
        "name": each.table,
        "told": "Running" if stream.is_running else "Stopped",
        "lag": show(stream.lag),
        "rate": show(stream.rate, ",.1f"),
        "event": show(stream.last_event_at),
        "commit": show(stream.last_commit_at),
    }
