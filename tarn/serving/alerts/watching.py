"""Evaluates the alerts of a project, each when it is due, one process of a machine at a time."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event as Flag
from threading import Timer

import duckdb

from tarn.errors import TarnError
from tarn.serving.alerts.declaration import Alert
from tarn.serving.alerts.findings import Declared, Finding, find
from tarn.serving.alerts.journal import Event, Journal
from tarn.serving.alerts.outbox import Outbox
from tarn.serving.alerts.project import channels, declared
from tarn.serving.alerts.states import step
from tarn.settings import Settings, settings
from tarn.storage.clock import now
from tarn.storage.lake import Lake
from tarn.storage.live import live
from tarn.storage.locks import taken
from tarn.storage.upkeep.maintain import FAILURES
from tarn.strict_yaml import duration

Say = Callable[[str], None]
_LONGEST_QUERY = 60.0
_LONGEST_PAUSE = 10.0
"""Seconds; mutes and other machines are noticed so soon."""
_WHILE_SENDING = 0.1
_MOST_BACKOFF = timedelta(minutes=15)
_STANDBY = 2.0


@dataclass
class _Turn:
    """When an alert is evaluated next."""

    due_at: datetime
    failures: int = 0


class Evaluator:
    """All alerts, their journal and what is on its way."""

    def __init__(
        self,
        alerts: Sequence[Declared],
        lake: Lake,
        journal: Journal,
        outbox: Outbox,
        say: Say,
        connect: Callable[[], duckdb.DuckDBPyConnection] | None = None,
    ) -> None:
        self.alerts, self.lake, self.journal, self.outbox = alerts, lake, journal, outbox
        self.say, self._connect = say, connect or (lambda: live(lake))
        self._turns: dict[str, _Turn] = {}
        self._held: dict[str, str] = {}
        """By alert, why nothing is concluded of its value."""

    def round(self, at: datetime, *, everything: bool = False) -> float:
        """Evaluate what is due and send what that changed; gives seconds to wait."""
        self.journal.refresh()
        for each in self.alerts:
            turn = self._turns.setdefault(each.name, _Turn(at))
            if everything or at >= turn.due_at:
                self._evaluate(each, turn, at)
        self.outbox.pump(at)
        return self._pause(at)

    def _evaluate(self, each: Declared, turn: _Turn, at: datetime) -> None:
        findings = find(each, self.lake, self._connected, at)
        is_failed = any(each.condition == "failure" and each.is_bad for each in findings)
        turn.failures = turn.failures + 1 if is_failed else 0
        turn.due_at = at + _backed_off(each.alert, turn.failures)
        for finding in findings:
            self._take(each, finding, at)
        self._tell_held(each, findings)

    @contextmanager
    def _connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection whose queries end in time."""
        with closing(self._connect()) as connection:
            timer = Timer(_LONGEST_QUERY, connection.interrupt)
            timer.daemon = True
            timer.start()
            try:
                yield connection
            except duckdb.InterruptException:
                raise TarnError(f"the query takes longer than {_LONGEST_QUERY:g} s") from None
            finally:
                timer.cancel()

    def _take(self, each: Declared, finding: Finding, at: datetime) -> None:
        incident = self.journal.of(each.name).incidents.get(finding.condition)
        change = step(incident, finding, each.alert, at)
        if change is not None and change.change == "repeated" and self._waits(each, finding):
            return
        event = self.journal.step(each.name, each.alert, change, at) if change else None
        if event is not None and change is not None and change.is_told:
            self.say(told(event))

    def _tell_held(self, each: Declared, findings: Sequence[Finding]) -> None:
        """Say why nothing is concluded, when that changes."""
        held = next((f.text for f in findings if f.condition == "value" and f.is_bad is None), "")
        if held != self._held.get(each.name, ""):
            self.say(
                f"{each.name}: {f'nothing is concluded: {held}' if held else 'measured again'}"
            )
        self._held[each.name] = held

    def _waits(self, each: Declared, finding: Finding) -> bool:
        """Whether the last message of a condition has not even been sent yet."""
        return any(
            event.alert == each.name and event.condition == finding.condition
            for event in self.journal.pending(datetime.max)
        )

    def _pause(self, at: datetime) -> float:
        if self.outbox.is_busy:
            return _WHILE_SENDING
        due = [turn.due_at for turn in self._turns.values()]
        again = self.outbox.again_at()
        soonest = min([*due, *([again] if again else [])], default=datetime.max)
        return min(max((soonest - at) / timedelta(seconds=1), _WHILE_SENDING), _LONGEST_PAUSE)


def told(event: Event) -> str:
    """An event as one line."""
    muted = " (muted)" if event.delivery == "muted" else ""
    return f"{event.alert}: {event.change}: {event.message}{muted}"


def _backed_off(alert: Alert, failures: int) -> timedelta:
    every = duration(alert.every)
    return max(every, min(every * 2 ** min(failures, 10), _MOST_BACKOFF)) if failures else every


def watch(stop: Flag, say: Say) -> None:
    """Evaluate the project's alerts until `stop` is set. Stands by while another process of this
    machine does; raises TarnError for a mistake in a declaration."""
    home = settings()
    alerts = declared(home)
    if not alerts:
        say("no alert is declared")
        return
    evaluator = evaluator_of(home, alerts, say)
    try:
        with _first_in_line(home.work_dir, stop, say):
            _run(evaluator, stop, say)
    finally:
        evaluator.outbox.finish(now())


def evaluator_of(home: Settings, alerts: Sequence[Declared], say: Say) -> Evaluator:
    """What evaluates these alerts in the project's lake."""
    lake = Lake.open(home)
    journal = Journal(lake, socket.gethostname())
    return Evaluator(alerts, lake, journal, Outbox(journal, channels(home, alerts), say), say)


def _run(evaluator: Evaluator, stop: Flag, say: Say) -> None:
    failure: str | None = None
    while not stop.is_set():
        try:
            pause = evaluator.round(now())
            failure = None
        except FAILURES as error:
            # The lake is away; what is due then waits for it.
            if failure is None:
                say(f"alerts wait: {error}")
            failure, pause = str(error), _LONGEST_PAUSE
        stop.wait(pause)


@contextmanager
def _first_in_line(work_dir: Path, stop: Flag, say: Say) -> Iterator[None]:
    """Wait until no other process evaluates, or until `stop`."""
    with _lock(work_dir).open("w") as lock:
        is_told = False
        while not stop.is_set() and not taken(lock):
            if not is_told:
                say("another process of this machine watches the alerts; standing by")
            is_told = True
            stop.wait(_STANDBY)
        yield


@contextmanager
def alone(work_dir: Path) -> Iterator[bool]:
    """Whether no other process of this machine evaluates; none will inside."""
    with _lock(work_dir).open("w") as lock:
        yield taken(lock)


def _lock(work_dir: Path) -> Path:
    work_dir.mkdir(parents=True, exist_ok=True)
    return work_dir / "alerts.lock"
