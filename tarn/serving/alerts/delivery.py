"""Sends one message to one channel, once. Addresses hold secrets, so no failure repeats them."""

import smtplib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import requests  # type: ignore[import-untyped]

from tarn.serving.alerts.declaration import Channel, Email, Webhook
from tarn.serving.alerts.journal import Event

_SECONDS = 10
_LONGEST_WAIT = 3600.0
_COLOURS = {"info": "#439fe0", "warning": "#daa038", "critical": "#a30200"}
_WELL = "#2eb886"
_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""What Slack takes for its own signs."""


class UndeliveredError(Exception):
    """Why a message was not taken, in words without secrets."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait
        """Seconds after which the receiver wants to be asked again."""


@dataclass(frozen=True)
class Open:
    """A channel with its variables put in."""

    label: str
    send: Callable[[Event], None]
    """Raises UndeliveredError."""


def opened(channel: Channel, label: str, expand: Callable[[str], str]) -> Open | None:
    """A channel ready to send; None of one whose variable is empty."""
    address = expand(channel.url if isinstance(channel, Webhook) else channel.smtp)
    if not address:
        return None
    if isinstance(channel, Webhook):
        return Open(label, lambda event: _post(address, event))
    return Open(label, lambda event: _mail(address, channel, event))


def _post(address: str, event: Event) -> None:
    try:
        # Its body is of no interest, and might never end.
        with requests.post(
            address, json=slack(event), timeout=_SECONDS, allow_redirects=False, stream=True
        ) as answer:
            code, wait = answer.status_code, answer.headers.get("Retry-After", "")
    except (requests.RequestException, ValueError) as error:
        raise UndeliveredError(f"cannot be reached ({type(error).__name__})") from None
    if not 200 <= code < 300:
        raise UndeliveredError(f"answers {code}", _seconds(wait))


def _seconds(retry_after: str) -> float:
    """A Retry-After header, which is seconds or a date."""
    if retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after[:9]), _LONGEST_WAIT)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max(0.0, (until - datetime.now(UTC)).total_seconds()), _LONGEST_WAIT)


def slack(event: Event) -> dict[str, Any]:
    """An event in the form of Slack's incoming webhooks, which Mattermost and others take too."""
    facts = {"alert": event.alert, "severity": event.severity, "change": event.change}
    if event.condition is not None:
        facts["condition"] = event.condition.replace("_", " ")
    is_well = event.change in ("resolved", "tested")
    attachment = {
        "fallback": event.message,
        "color": _WELL if is_well else _COLOURS[event.severity],
        "fields": [{"title": k, "value": v, "short": True} for k, v in facts.items()],
        "footer": _id(event),
        "ts": int(event.happened_at.replace(tzinfo=UTC).timestamp()),
    }
    return {"text": event.message.translate(_ESCAPED), "attachments": [attachment]}


def _id(event: Event) -> str:
    """The same however often an event is sent, so that a receiver can tell."""
    return f"{event.alert}-{event.sequence}-{event.happened_at:%Y%m%d%H%M%S}"


def _mail(server: str, channel: Email, event: Event) -> None:
    try:
        with _connected(server) as smtp:
            smtp.send_message(_letter(channel, event))
    except smtplib.SMTPResponseException as error:
        raise UndeliveredError(f"the mail server answers {error.smtp_code}") from None
    except (smtplib.SMTPException, OSError, ValueError) as error:
        reason = f"the mail server cannot be reached ({type(error).__name__})"
        raise UndeliveredError(reason) from None


def _letter(channel: Email, event: Event) -> EmailMessage:
    letter = EmailMessage()
    word = "resolved" if event.change == "resolved" else event.severity
    letter["Subject"] = " ".join(f"[{word}] {event.message}".split())[:200]
    letter["From"], letter["To"] = channel.sender, ", ".join(channel.to)
    letter["Date"] = format_datetime(event.happened_at.replace(tzinfo=UTC))
    letter["Message-ID"] = f"<{_id(event)}@{channel.sender.rpartition('@')[2]}>"
    facts = f"alert: {event.alert}\nseverity: {event.severity}\nchange: {event.change}"
    letter.set_content(f"{event.message}\n\n{facts}\nat: {event.happened_at:%Y-%m-%d %H:%M} UTC\n")
    return letter


def _connected(server: str) -> smtplib.SMTP:
    """A session that may send. A password goes over TLS or not at all."""
    at = urlsplit(server)
    if at.scheme not in ("smtp", "smtps") or not at.hostname:
        raise UndeliveredError("its address is not smtp://user:password@host:port")
    safe = ssl.create_default_context()
    if at.scheme == "smtps":
        smtp: smtplib.SMTP = smtplib.SMTP_SSL(
            at.hostname, at.port or 465, timeout=_SECONDS, context=safe
        )
    else:
        smtp = smtplib.SMTP(at.hostname, at.port or 587, timeout=_SECONDS)
    try:
        smtp.ehlo()
        if at.scheme == "smtp" and smtp.has_extn("starttls"):
            smtp.starttls(context=safe)
            smtp.ehlo()
        elif at.scheme == "smtp" and at.password:
            raise UndeliveredError("the mail server has no STARTTLS, so it gets no password")
        if at.username and at.password:
            smtp.login(unquote(at.username), unquote(at.password))
    except BaseException:
        smtp.close()
        raise
    return smtp
