"""The tile of alerts: what the journal `tarn.alerts` says is open, and what was resolved lately."""

from dataclasses import dataclass
from datetime import datetime

import duckdb

from tarn.serving.live.declaration import Alerts
from tarn.strict_yaml import duration

_SQL = """
    with changes as (
    select
        arg_max(title, sequence) as title,
        arg_max(severity, sequence) as severity,
        arg_max(message, sequence) filter (change <> 'recovering') as message,
        arg_max(change, sequence) = 'resolved' as is_resolved,
        arg_max(coalesce(opened_at, happened_at), sequence) as opened_at,
        max(happened_at) as changed_at
    from tarn.alerts
    where change in ('opened', 'repeated', 'recovering', 'relapsed', 'resolved')
    group by alert, condition
    having not is_resolved or changed_at > ?
    )
    from changes
    order by is_resolved, list_position(['critical', 'warning', 'info'], severity), changed_at desc
    limit 50
"""


@dataclass(frozen=True)
class Listed:
    """One condition of one alert. Times are UTC without zone."""

    title: str
    severity: str
    message: str
    is_resolved: bool
    opened_at: datetime
    changed_at: datetime


def listed(tile: Alerts, cursor: duckdb.DuckDBPyConnection) -> list[Listed] | None:
    """The open ones, worst first, then those resolved; None before any alert was evaluated."""
    there = "from information_schema.tables where table_schema = 'tarn' and table_name = 'alerts'"
    if not cursor.execute(there).fetchall():
        return None
    since = cursor.execute("select current_timestamp::timestamp").fetchall()[0][0]
    rows = cursor.execute(_SQL, [since - duration(tile.resolved_within)]).fetchall()
    return [Listed(*row) for row in rows]
