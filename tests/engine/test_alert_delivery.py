"""Alerts to a real web server and a real mail server on this machine."""

import json
import logging
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tarn.errors import TarnError
from tarn.serving.alerts import manual
from tarn.serving.alerts.declaration import Email, Webhook, label
from tarn.serving.alerts.delivery import Open, UndeliveredError, opened
from tarn.serving.alerts.journal import Event, Journal
from tarn.serving.alerts.outbox import Outbox
from tarn.serving.alerts.project import channels
from tarn.serving.alerts.watching import Evaluator
from tarn.settings import Settings
from tarn.storage.lake import Lake
from tests.engine.alerting import NOW, connected, declared, happen, history, minutes
from tests.engine.upstreams import RESET, Answer, Request, serving

TOKEN = "T0/B0/s3cret-token"  # noqa: S105
PASSWORD = "pa55:word@/"  # noqa: S105
QUOTED = "pa55%3Aword%40%2F"
WELL: Answer = (200, {}, b"ok")
EVENT = Event(
    "no_orders", 3, "opened", "value", "critical", "No orders", "No orders: 0 <b> & co", NOW
)


class Hook:
    """A webhook, and what it was sent."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.refuse: list[Answer] = []
        """Answers to give first, once each."""

    def answer(self, request: Request) -> Answer:
        assert request.path == f"/{TOKEN}"
        if self.refuse:
            return self.refuse.pop(0)
        self.got.append(json.loads(request.body))
        return WELL


@pytest.fixture
def hook() -> Iterator[tuple[Hook, str]]:
    made = Hook()
    with serving(made.answer) as address:
        yield made, f"{address}/{TOKEN}"


def webhook(address: str) -> Open:
    channel = Webhook(kind="webhook", url="${HOOK}")
    made = opened(channel, label(channel), lambda text: text.replace("${HOOK}", address))
    assert made is not None
    return made


def email(server: str, *to: str) -> Open:
    channel = Email(kind="email", to=to or ("ops@example.com",), sender="tarn@example.com")
    made = opened(channel, label(channel), lambda text: text.replace("${SMTP_URL}", server))
    assert made is not None
    return made


class Evaluating:
    """An evaluator that sends to these channels."""

    def __init__(self, lake: Lake, *opened: Open, alerts: int = 1) -> None:
        self.said: list[str] = []
        found = [declared(f"alert_{i}") for i in range(alerts)]
        journal = Journal(lake, "here")
        self.outbox = Outbox(journal, {each.name: opened for each in found}, self.said.append)
        self.evaluator = Evaluator(
            found, lake, journal, self.outbox, self.said.append, lambda: connected(lake)
        )

    def at(self, moment: datetime) -> None:
        self.evaluator.round(moment)
        self.outbox.flush(moment)


def test_a_webhook_gets_what_slack_takes(hook: tuple[Hook, str]) -> None:
    made, address = hook
    webhook(address).send(EVENT)
    [got] = made.got
    assert got["text"] == "No orders: 0 &lt;b&gt; &amp; co"
    [attachment] = got["attachments"]
    assert attachment["color"] == "#a30200"
    assert {each["title"]: each["value"] for each in attachment["fields"]} == {
        "alert": "no_orders", "severity": "critical", "change": "opened", "condition": "value"
    }  # fmt: skip
    assert attachment["ts"] == NOW.replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("answer", "told", "wait"),
    [
        ((500, {}, b"no"), "answers 500", 0),
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "answers 302", 0),
        ((429, {"retry-after": "120"}, b""), "answers 429", 120),
        ((503, {"retry-after": "9" * 40}, b""), "answers 503", 3600),
        ((503, {"retry-after": "soon"}, b""), "answers 503", 0),
        ((RESET, {}, b""), "cannot be reached (ConnectionError)", 0),
    ],
)
def test_a_webhook_that_refuses_is_told_without_its_address(
    hook: tuple[Hook, str], answer: Answer, told: str, wait: float
) -> None:
    made, address = hook
    made.refuse.append(answer)
    with pytest.raises(UndeliveredError) as refused:
        webhook(address).send(EVENT)
    assert (str(refused.value), refused.value.wait) == (told, wait)
    assert refused.value.__cause__ is None


def test_a_date_to_wait_for_is_read(hook: tuple[Hook, str]) -> None:
    made, address = hook
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=200), usegmt=True)
    made.refuse.append((429, {"retry-after": until}, b""))
    with pytest.raises(UndeliveredError) as refused:
        webhook(address).send(EVENT)
    assert 100 < refused.value.wait <= 200


@pytest.mark.parametrize("address", ["no address", "http://127.0.0.1:1/x", "http://[::1"])
def test_an_address_that_is_none_is_told_without_it(address: str) -> None:
    with pytest.raises(UndeliveredError) as refused:
        webhook(address).send(EVENT)
    assert address not in str(refused.value)


def test_a_webhook_that_is_away_is_told_once_and_gets_everything_in_order(
    lake: Lake, hook: tuple[Hook, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made, address = hook
    made.refuse += [(500, {}, b""), (500, {}, b""), (429, {"retry-after": "600"}, b"")]
    happen(lake, "click", NOW)
    here = Evaluating(lake, webhook(address))
    here.at(NOW)
    here.at(NOW + timedelta(seconds=4))
    assert len(made.refuse) == 2
    here.at(NOW + timedelta(seconds=6))
    happen(lake, "order", NOW + minutes(1), NOW + minutes(12))
    here.at(NOW + minutes(2))  # resolved, but what opened is to be sent first
    here.at(NOW + minutes(3))
    assert (made.refuse, made.got) == ([], [])
    here.at(NOW + minutes(13))
    assert [each["attachments"][0]["fields"][2]["value"] for each in made.got] == [
        "opened", "resolved"
    ]  # fmt: skip
    assert [each for each in here.said if each.startswith("webhook")] == [
        "webhook HOOK answers 500; it is tried until it takes messages",
        "webhook HOOK: takes messages again",
    ]
    rows = history(lake)
    assert [(row["change"], row["delivery"]) for row in rows] == [
        ("opened", "delivered"), ("undelivered", "none"), ("resolved", "delivered")
    ]  # fmt: skip
    assert rows[0]["delivered_at"] == NOW + minutes(13)
    assert "s3cret" not in json.dumps([rows, here.said, caplog.text], default=str)


def test_a_channel_that_is_away_keeps_no_other_waiting(lake: Lake, hook: tuple[Hook, str]) -> None:
    made, address = hook
    happen(lake, "click", NOW)
    away = Open("webhook AWAY", webhook("http://127.0.0.1:1/x").send)
    here = Evaluating(lake, away, webhook(address), alerts=2)
    here.at(NOW)
    told = [each["text"] for each in made.got]
    assert sum(each.startswith("No orders: 0 in") for each in told) == 2
    # The others hear of it, once.
    assert sum(each.startswith("webhook AWAY cannot be reached") for each in told) == 1
    here.at(NOW + minutes(1))
    assert len(made.got) == len(told)
    opened_rows = [row for row in history(lake) if row["change"] == "opened"]
    assert {(row["delivery"], row["delivered_to"]) for row in opened_rows} == {
        ("pending", '["webhook HOOK"]')
    }
    here.at(NOW + timedelta(days=1, minutes=1))
    assert any("given up after a day" in each for each in here.said)


class Mailbox:
    """What a mail server took."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.refuse = False

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.refuse:
            return "451 later"
        self.got.append(message_from_bytes(envelope.content))
        return "250 OK"


@contextmanager
def mail_server(**options: Any) -> Iterator[tuple[Mailbox, str]]:
    """A mail server on a free port, and its host and port."""
    box = Mailbox()
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    controller = Controller(box, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield box, f"127.0.0.1:{port}"
    finally:
        controller.stop(no_assert=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem"
        " -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_a_mail_says_it_in_its_subject() -> None:
    with mail_server() as (box, address):
        email(f"smtp://{address}", "a@example.com", "b@example.com").send(EVENT)
    [letter] = box.got
    assert str(make_header(decode_header(letter["Subject"]))) == "[critical] No orders: 0 <b> & co"
    assert letter["To"] == "a@example.com, b@example.com"
    assert letter["Message-ID"].startswith("<no_orders-3-")
    assert "No orders: 0 <b> & co" in str(letter.get_payload())


def test_a_password_goes_over_tls_or_not_at_all(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[bytes, bytes]] = []

    def known(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        given.append((data.login, data.password))
        return AuthResult(success=data.password == PASSWORD.encode(), handled=False)

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    options = {"authenticator": known, "auth_required": True}
    with mail_server(tls_context=tls, require_starttls=True, **options) as (box, address):
        with pytest.raises(UndeliveredError, match=r"cannot be reached \(SSLCert"):
            email(f"smtp://me:{QUOTED}@{address}").send(EVENT)
        assert given == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        email(f"smtp://me:{QUOTED}@{address}").send(EVENT)
        with pytest.raises(UndeliveredError, match="answers 535"):
            email(f"smtp://me:wrong@{address}").send(EVENT)
    assert (len(box.got), given[0]) == (1, (b"me", PASSWORD.encode()))
    with (
        mail_server(auth_require_tls=False, **options) as (box, address),
        pytest.raises(UndeliveredError, match="has no STARTTLS, so it gets no password"),
    ):
        email(f"smtp://me:{QUOTED}@{address}").send(EVENT)
    assert box.got == []


@pytest.mark.parametrize(
    "server", ["http://127.0.0.1:25", "smtp:///x", "smtp://127.0.0.1:1", "nowhere"]
)
def test_a_mail_server_that_is_none_is_told(server: str) -> None:
    with pytest.raises(UndeliveredError) as refused:
        email(server).send(EVENT)
    assert server not in str(refused.value)


def test_a_mail_server_that_is_busy_gets_it_later(lake: Lake) -> None:
    happen(lake, "click", NOW)
    with mail_server() as (box, address):
        here = Evaluating(lake, email(f"smtp://{address}"))
        box.refuse = True
        here.at(NOW)
        assert "email to ops@example.com the mail server answers 451" in here.said[-1]
        box.refuse = False
        here.at(NOW + minutes(1))
    assert len(box.got) == 1


def test_a_test_reaches_all_channels(lake: Lake, hook: tuple[Hook, str]) -> None:
    made, address = hook
    away = Open("webhook AWAY", webhook("http://127.0.0.1:1/x").send)
    answers = manual.test(Journal(lake, "here"), declared(), [webhook(address), away], NOW)
    assert answers == {
        "webhook HOOK": None, "webhook AWAY": "cannot be reached (ConnectionError)"
    }  # fmt: skip
    assert made.got[0]["text"] == "No orders: this is a test, nothing has happened"
    assert [row["change"] for row in history(lake)] == ["tested"]


def test_variables_are_asked_for_by_name(tmp_path: Path) -> None:
    optional = declared("quiet", notify=[{"kind": "webhook", "url": "${HOOK:-}"}])
    home = Settings(tmp_path, str(tmp_path), tmp_path, {})
    assert channels(home, [optional]) == {"quiet": []}
    with pytest.raises(TarnError, match="variable HOOK is not set"):
        channels(home, [declared()])


def test_what_was_sent_while_the_lake_is_away_is_not_sent_again(
    lake: Lake, hook: tuple[Hook, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Journal, event: Event) -> None:
        raise TarnError("the lake is away")

    made, address = hook
    happen(lake, "click", NOW)
    here = Evaluating(lake, webhook(address))
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "note", away)
        with pytest.raises(TarnError, match="the lake is away"):
            here.at(NOW)
    here.at(NOW + minutes(1))
    assert len(made.got) == 1
    assert [row["delivery"] for row in history(lake)] == ["delivered"]


def test_who_has_no_channel_set_finds_it_in_the_table(lake: Lake) -> None:
    happen(lake, "click", NOW)
    Evaluating(lake).at(NOW)
    assert [(row["change"], row["delivery"]) for row in history(lake)] == [("opened", "none")]
