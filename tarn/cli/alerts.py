"""The verbs of alerts: watch them, look at them, mute them."""

import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from tarn.cli.console import lake, print_table, say
from tarn.errors import TarnError
from tarn.settings import settings
from tarn.strict_yaml import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarn.serving.alerts.findings import Declared
    from tarn.serving.alerts.journal import Journal
    from tarn.serving.alerts.manual import Stand

log = logging.getLogger(__name__)

_LONGEST_END = 30.0
"""Seconds that messages on their way are waited for."""


@click.group(invoke_without_command=True)
@click.pass_context
def alerts(context: click.Context) -> None:
    """Evaluate the project's alerts until Ctrl-C, and tell who must know."""
    if context.invoked_subcommand is None:
        context.invoke(watch)


@alerts.command()
def watch() -> None:
    """Evaluate each alert when it is due, until Ctrl-C: as tarn alerts alone."""
    from tarn.serving.alerts.watching import watch as watch_alerts

    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    watch_alerts(stop, say)


@alerts.command()
def check() -> None:
    """Evaluate each alert once; the exit code is 1 when any is open.

    While another process watches, where alerts stand is only told."""
    from tarn.serving.alerts.watching import alone, evaluator_of
    from tarn.storage.clock import now

    home, found = settings(), _declared()
    evaluator = evaluator_of(home, found, say)
    with alone(home.work_dir) as is_ours:
        if is_ours:
            evaluator.round(now(), everything=True)
            evaluator.outbox.flush(now())
        else:
            say("another process of this machine watches the alerts; this is what it found")
    evaluator.outbox.finish(now())
    sys.exit(_tell(found, evaluator.journal))


@alerts.command(name="list")
def list_() -> None:
    """Show where each alert stands."""
    from tarn.serving.alerts.watching import alone

    with alone(settings().work_dir) as nobody_watches:
        pass
    _tell(_declared(), _journal())
    if nobody_watches:
        say("No process of this machine watches them now.")


@alerts.command()
@click.argument("name")
def test(name: str) -> None:
    """Send a test message to all channels of an alert."""
    from tarn.serving.alerts import manual
    from tarn.serving.alerts.project import channels, one
    from tarn.storage.clock import now

    alert = one(_declared(), name)
    opened = channels(settings(), [alert])[name]
    answers = manual.test(_journal(), alert, opened, now())
    for channel, reason in answers.items():
        say(f"{channel}: {reason or 'sent'}")
    say(f"table tarn.alerts: written{'' if answers else '; no channel is declared or set'}")
    sys.exit(any(answers.values()))


@alerts.command()
@click.argument("name")
@click.option("--for", "length", default="1h", show_default=True, metavar="TIME", help="As 30m, 2h")
def mute(name: str, length: str) -> None:
    """Send nothing of an alert for a time. Its changes are recorded all the same."""
    from tarn.serving.alerts import manual
    from tarn.serving.alerts.project import one
    from tarn.storage.clock import now

    try:
        lasting = duration(length)
    except ValueError as error:
        raise TarnError(str(error), "--for") from None
    until = manual.mute(_journal(), one(_declared(), name), lasting, now())
    say(f"{name} is muted until {until:%Y-%m-%d %H:%M} UTC.")


@alerts.command()
@click.argument("name")
def unmute(name: str) -> None:
    """Send again what is told of an alert."""
    from tarn.serving.alerts import manual
    from tarn.serving.alerts.project import one
    from tarn.storage.clock import now

    manual.unmute(_journal(), one(_declared(), name), now())
    say(f"{name} is no longer muted.")


@contextmanager
def watched(stop: Event) -> Iterator[None]:
    """Evaluate the alerts beside what is done inside. What is wrong with them is told, and stops
    nothing; at the end `stop` is set."""
    thread = Thread(target=_watch, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LONGEST_END)


def _watch(stop: Event) -> None:
    from tarn.serving.alerts.watching import watch as watch_alerts

    try:
        watch_alerts(stop, say)
    except Exception as failure:
        log.debug("alerts", exc_info=True)
        say(f"alerts are not evaluated: {failure}")


def _declared() -> "Sequence[Declared]":
    from tarn.serving.alerts.project import declared

    return declared(settings())


def _journal() -> "Journal":
    from tarn.serving.alerts.journal import Journal

    return Journal(lake(), socket.gethostname())


def _tell(found: "Sequence[Declared]", journal: "Journal") -> bool:
    """Show where alerts stand; whether any is open."""
    from tarn.serving.alerts.manual import stands
    from tarn.storage.clock import now

    journal.refresh()
    standing = stands(found, journal.standings, now())
    if standing:
        print_table(_listed(standing), at_least=100)
    else:
        say("No alert is declared.")
    return any(each.is_open for each in standing)


def _listed(standing: "Sequence[Stand]") -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("alert", "severity", "state", "since (UTC)", "muted until", "message"):
        table.add_column(heading, overflow="fold")
    for each in standing:
        state = f"[red]{each.state}[/red]" if each.is_open else each.state
        moments = (f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (each.since, each.muted_until))
        table.add_row(each.name, each.severity, state, *moments, escape(each.message))
    return table
