"""Sends what the journal holds, beside the evaluation, until each channel has it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from tarn.serving.alerts.delivery import Open, UndeliveredError
from tarn.serving.alerts.journal import Event, Journal

Lane: TypeAlias = tuple[str, str]
"""Alert and channel: what goes there keeps its order."""
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 900.0
"""Seconds."""
_GIVE_UP = timedelta(days=1)
_SIDE_BY_SIDE = 4


@dataclass
class _Trouble:
    """A channel of an alert that does not take messages."""

    tries: int
    again_at: datetime


class Outbox:
    """What is on its way. One thread uses it; the sending is done by others."""

    def __init__(
        self,
        journal: Journal,
        channels: Mapping[str, Sequence[Open]],
        say: Callable[[str], None],
    ) -> None:
        self.journal, self.channels, self.say = journal, channels, say
        self._pool = ThreadPoolExecutor(_SIDE_BY_SIDE, "alerts")
        self._sending: dict[Future[None], tuple[Event, str]] = {}
        self._sent: dict[tuple[str, int], list[str]] = defaultdict(list)
        """Channels that have an event, by its alert and number, until that is noted."""
        self._troubles: dict[Lane, _Trouble] = {}
        self._told: set[str] = set()

    def pump(self, at: datetime) -> None:
        """Note what has been sent by now, and send what can be. Does not wait."""
        self._collect(at)
        busy = {(event.alert, label) for event, label in self._sending.values()}
        pending = list(self.journal.pending(at))
        wanted = {
            (each.alert, channel.label) for each in pending for channel in self._missing(each)
        }
        self._troubles = {lane: known for lane, known in self._troubles.items() if lane in wanted}
        for event in pending:
            missing = self._missing(event)
            if not missing or at - event.happened_at > _GIVE_UP:
                self._end(event, at, is_given_up=bool(missing))
                continue
            for channel in missing:
                lane = (event.alert, channel.label)
                trouble = self._troubles.get(lane)
                if lane not in busy and not (trouble and at < trouble.again_at):
                    self._sending[self._pool.submit(channel.send, event)] = event, channel.label
                busy.add(lane)

    def finish(self, at: datetime) -> None:
        """Wait for what is on its way and note it, then end."""
        wait(self._sending)
        self._collect(at)
        self._pool.shutdown()

    def flush(self, at: datetime) -> None:
        """Send all that can be sent, and wait for it."""
        self.pump(at)
        while self._sending:
            wait(self._sending)
            self.pump(at)

    @property
    def is_busy(self) -> bool:
        return bool(self._sending)

    def again_at(self) -> datetime | None:
        """When a channel is to be tried next, if one is in trouble."""
        return min((each.again_at for each in self._troubles.values()), default=None)

    def _missing(self, event: Event) -> list[Open]:
        has = {*event.delivered_to, *self._sent.get((event.alert, event.sequence), ())}
        return [each for each in self.channels.get(event.alert, ()) if each.label not in has]

    def _end(self, event: Event, at: datetime, *, is_given_up: bool) -> None:
        if is_given_up:
            self.say(f"{event.alert}: given up after a day: {event.message}")
            self.journal.note(replace(event, delivery="given up"))
        elif event.delivered_to:
            self.journal.note(replace(event, delivery="delivered", delivered_at=at))
        else:
            # It has no channel any more, or none whose variable is set.
            self.journal.note(replace(event, delivery="none"))

    def _collect(self, at: datetime) -> None:
        for future in [each for each in self._sending if each.done()]:
            event, label = self._sending.pop(future)
            failure = future.exception()
            if failure is None:
                self._well(event.alert, label)
                self._sent[event.alert, event.sequence].append(label)
            else:
                self._undelivered(event, label, failure, at)
        for key, labels in list(self._sent.items()):
            # What cannot be noted now, as the lake is away, is not sent again for that.
            if waiting := self.journal.waiting(*key):
                delivered_to = (*waiting.delivered_to, *labels)
                self._note(replace(waiting, delivered_to=delivered_to), at)
            del self._sent[key]

    def _note(self, event: Event, at: datetime) -> None:
        if not self._missing(event):
            event = replace(event, delivery="delivered", delivered_at=at)
        self.journal.note(event)

    def _well(self, alert: str, label: str) -> None:
        self._troubles.pop((alert, label), None)
        if label in self._told:
            self._told.discard(label)
            self.say(f"{label}: takes messages again")

    def _undelivered(self, event: Event, label: str, failure: BaseException, at: datetime) -> None:
        told = isinstance(failure, UndeliveredError)
        reason = str(failure) if told else f"cannot be sent to ({type(failure).__name__})"
        wished = failure.wait if isinstance(failure, UndeliveredError) else 0
        before = self._troubles.get((event.alert, label))
        tries = before.tries + 1 if before else 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries - 1, 10))
        again = at + timedelta(seconds=max(wished, pause))
        self._troubles[event.alert, label] = _Trouble(tries, again)
        if label not in self._told:
            self._told.add(label)
            self._tell(event, label, f"{label} {reason}; it is tried until it takes messages", at)

    def _tell(self, event: Event, label: str, message: str, at: datetime) -> None:
        """Say so here, in the table and to the other channels of the alert, once."""
        self.say(message)
        notice = replace(
            event,
            change="undelivered",
            message=message,
            happened_at=at,
            delivery="pending",
            delivered_to=(label,),
            delivered_at=None,
        )
        if not self._missing(notice):
            notice = replace(notice, delivery="none")
        self.journal.record(notice)
