"""What people do to alerts by hand: look, mute, and try the channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tarn.errors import TarnError
from tarn.serving.alerts.delivery import Open, UndeliveredError
from tarn.serving.alerts.findings import CONDITIONS, Declared
from tarn.serving.alerts.journal import Event, Journal, Standing
from tarn.serving.alerts.states import Change

_WORDS = {"value": "open", "no_data": "no data", "late_data": "late data", "failure": "failing"}
_ATTEMPTS = 5


@dataclass(frozen=True)
class Stand:
    """Where an alert stands, for one line."""

    name: str
    severity: str
    state: str
    """ok, or the conditions that are open in words."""
    is_open: bool
    since: datetime | None
    muted_until: datetime | None
    message: str


def stands(
    alerts: Sequence[Declared], standings: Mapping[str, Standing], at: datetime
) -> list[Stand]:
    """Where all alerts stand at a moment, what is open first."""
    found = [_stand(each, standings.get(each.name, Standing()), at) for each in alerts]
    return sorted(found, key=lambda each: (not each.is_open, each.name))


def _stand(declared: Declared, standing: Standing, at: datetime) -> Stand:
    known = {name: standing.incidents[name] for name in CONDITIONS if name in standing.incidents}
    return Stand(
        name=declared.name,
        severity=declared.alert.severity,
        state=", ".join(_WORDS[name] for name in known) or "ok",
        is_open=bool(known),
        since=min((each.opened_at for each in known.values()), default=None),
        muted_until=standing.muted_until if standing.is_muted(at) else None,
        message="\n".join(each.message for each in known.values()),
    )


def mute(journal: Journal, declared: Declared, length: timedelta, at: datetime) -> datetime:
    """Send nothing of an alert for so long; what happens is recorded all the same."""
    until = at + length
    message = f"{declared.alert.title}: muted until {until:%Y-%m-%d %H:%M} UTC"
    _record(journal, _event(declared, "muted", message, at, until))
    return until


def unmute(journal: Journal, declared: Declared, at: datetime) -> None:
    """Send again. What is open and was never sent is, with the next evaluation."""
    _record(journal, _event(declared, "unmuted", f"{declared.alert.title}: no longer muted", at))


def test(
    journal: Journal, declared: Declared, channels: Sequence[Open], at: datetime
) -> dict[str, str | None]:
    """Send a message to each channel now; by channel, why it was not taken, or None."""
    message = f"{declared.alert.title}: this is a test, nothing has happened"
    event = _record(journal, _event(declared, "tested", message, at))
    return {channel.label: _tried(channel, event) for channel in channels}


def _tried(channel: Open, event: Event) -> str | None:
    try:
        channel.send(event)
    except UndeliveredError as failure:
        return str(failure)
    return None


def _event(
    declared: Declared, change: Change, message: str, at: datetime, until: datetime | None = None
) -> Event:
    alert = declared.alert
    return Event(
        declared.name, 0, change, None, alert.severity, alert.title, message, at, muted_until=until
    )


def _record(journal: Journal, event: Event) -> Event:
    """Record it, after whatever an evaluator records at the same time."""
    for _ in range(_ATTEMPTS):
        journal.refresh()
        if recorded := journal.record(event):
            return recorded
    raise TarnError("others kept writing to the alert's history", event.alert, "run it again")
