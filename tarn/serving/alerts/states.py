"""When a condition opens, is told again and is resolved. Pure: state and finding give a change."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from tarn.serving.alerts.declaration import Alert
from tarn.serving.alerts.findings import CONDITIONS, Condition, Finding
from tarn.storage.loads import span
from tarn.strict_yaml import duration

Change = Literal[
    "opened", "repeated", "recovering", "relapsed", "resolved",
    "undelivered", "tested", "muted", "unmuted",
]  # fmt: skip
"""What a row of `tarn.alerts` says has happened."""


@dataclass(frozen=True)
class Incident:
    """A condition that is open."""

    opened_at: datetime
    message: str
    told_at: datetime | None
    """When it was last to be sent; None of one that opened while muted."""
    well_since: datetime | None = None
    """Set while it waits to be resolved."""


@dataclass(frozen=True)
class Step:
    """A change to be recorded, and sent unless it is only remembered."""

    change: Change
    condition: Condition
    message: str
    finding: Finding | None = None
    opened_at: datetime | None = None
    is_told: bool = True


def step(incident: Incident | None, finding: Finding, alert: Alert, at: datetime) -> Step | None:
    """What a finding changes; None if nothing. What is unknown changes nothing."""
    if finding.is_bad is None:
        return None
    if incident is None:
        return _step("opened", finding, at) if finding.is_bad else None
    if finding.is_bad:
        return _still_bad(incident, finding, alert, at)
    return _well(incident, finding, alert, at)


def _step(change: Change, finding: Finding, opened_at: datetime, is_told: bool = True) -> Step:
    return Step(change, finding.condition, finding.text, finding, opened_at, is_told)


def _still_bad(incident: Incident, finding: Finding, alert: Alert, at: datetime) -> Step | None:
    if incident.told_at is None or (
        # What is broken in the alert itself is told once.
        finding.condition != "failure" and at - incident.told_at >= duration(alert.repeat_after)
    ):
        return _step("repeated", finding, incident.opened_at)
    if incident.well_since is not None:
        return _step("relapsed", finding, incident.opened_at, is_told=False)
    return None


def _well(incident: Incident, finding: Finding, alert: Alert, at: datetime) -> Step | None:
    since = incident.well_since or at
    if at - since < duration(alert.resolve_after):
        if incident.well_since is not None:
            return None
        return _step("recovering", finding, incident.opened_at, is_told=False)
    lasted = span((at - incident.opened_at).total_seconds())
    step = _step("resolved", finding, incident.opened_at, incident.told_at is not None)
    return replace(step, message=f"Resolved after {lasted}: {finding.text}")


def after(
    incidents: dict[Condition, Incident],
    change: Change,
    condition: Condition | None,
    at: datetime,
    message: str,
    is_told: bool,
) -> None:
    """Take a recorded change into the open conditions of an alert."""
    if condition not in CONDITIONS:
        return
    known = incidents.get(condition)
    if change == "resolved":
        incidents.pop(condition, None)
    elif change == "opened":
        incidents[condition] = Incident(at, message, at if is_told else None)
    elif known is not None and change == "recovering":
        incidents[condition] = replace(known, well_since=at)
    elif known is not None and change in ("repeated", "relapsed"):
        told_at = at if is_told else known.told_at
        incidents[condition] = replace(known, message=message, told_at=told_at, well_since=None)
