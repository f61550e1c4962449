"""What has been pulled from Pub/Sub is leased: it comes again when its time is over.

A thread of its own extends leases of messages that wait to land, however long a commit takes, and
acknowledges those that have landed.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from threading import Event, Lock, Thread

from google.pubsub_v1.services.subscriber import SubscriberClient

from tarn.ingestion.streams.transports.gcp import FAILURES, Failure, refused_ids

log = logging.getLogger(__name__)

_FIRST_SECONDS = 10.0
"""The shortest lease that a subscription gives with a message."""
_LEASE_SECONDS = 30
_SOON_SECONDS = 7.0
"""A lease that ends so soon is extended: most messages land before that."""
_LOOK_SECONDS = 2.0
_IDS = 2_500
"""Of half a megabyte, which a request may have."""
_CALL_SECONDS = 10.0
_TRANSIENT = "TRANSIENT"


class Leases:
    """Of one connection. `hold` may be called from any thread."""

    def __init__(self, client: SubscriberClient) -> None:
        self.client = client
        self._lock = Lock()
        self._held: dict[str, dict[str, float]] = defaultdict(dict)
        """When leases end, by subscription and acknowledgement id."""
        self._landed: dict[str, dict[str, None]] = defaultdict(dict)
        self._wake, self._is_over = Event(), False
        self._thread = Thread(target=self._run, name="pubsub-leases", daemon=True)
        self._thread.start()

    def hold(self, subscription: str, ack_ids: Iterable[str]) -> None:
        """These have come, and are not to come again until they have landed."""
        until = time.monotonic() + _FIRST_SECONDS
        with self._lock:
            self._held[subscription].update(dict.fromkeys(ack_ids, until))

    def landed(self, subscription: str, ack_ids: Iterable[str]) -> None:
        """Acknowledge these, soon."""
        with self._lock:
            landed, held = self._landed[subscription], self._held[subscription]
            for ack_id in ack_ids:
                landed[ack_id] = None
                held.pop(ack_id, None)
        self._wake.set()

    def give_back(self, subscription: str) -> None:
        """Let what has not landed come again at once."""
        with self._lock:
            held = list(self._held.pop(subscription, ()))
        self._each(held, partial(self._extend, subscription, 0))

    def close(self) -> None:
        """Acknowledge what has landed, and give back the rest; what fails comes again later."""
        self._is_over = True
        self._wake.set()
        self._thread.join()
        self._acknowledge()
        for subscription in list(self._held):
            self.give_back(subscription)

    def _run(self) -> None:
        while not self._is_over:
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            if not self._is_over:
                self._extend_all()
                self._acknowledge()

    def _acknowledge(self) -> None:
        with self._lock:
            landed = {name: list(ids) for name, ids in self._landed.items()}
        for name, ack_ids in landed.items():
            done = self._each(ack_ids, partial(self._call_acknowledge, name))
            with self._lock:
                for ack_id in done:
                    del self._landed[name][ack_id]

    def _extend_all(self) -> None:
        now = time.monotonic()
        with self._lock:
            soon = {
                name: [ack_id for ack_id, until in ids.items() if until < now + _SOON_SECONDS]
                for name, ids in self._held.items()
            }
        for name, ack_ids in soon.items():
            done = self._each(ack_ids, partial(self._extend, name, _LEASE_SECONDS))
            with self._lock:
                held = self._held[name]
                held.update((each, now + _LEASE_SECONDS) for each in done if each in held)

    def _call_acknowledge(self, subscription: str, ack_ids: list[str]) -> None:
        self.client.acknowledge(
            subscription=subscription, ack_ids=ack_ids, retry=None, timeout=_CALL_SECONDS
        )

    def _extend(self, subscription: str, seconds: int, ack_ids: list[str]) -> None:
        self.client.modify_ack_deadline(
            subscription=subscription,
            ack_ids=ack_ids,
            ack_deadline_seconds=seconds,
            retry=None,
            timeout=_CALL_SECONDS,
        )

    def _each(self, ack_ids: Sequence[str], call: Callable[[list[str]], None]) -> Sequence[str]:
        """Call with so many as a request holds. Which are not to be tried again: all but those
        whose failure passes."""
        done: list[str] = []
        remaining = iter(ack_ids)
        while chunk := list(islice(remaining, _IDS)):
            try:
                call(chunk)
                done += chunk
            except FAILURES as failure:
                done += _settled(chunk, failure)
                if not refused_ids(failure):
                    log.info("%d leases: %s", len(chunk), failure)
                    break
        return done


def _settled(ack_ids: Sequence[str], failure: Failure) -> Sequence[str]:
    """Those of a call that failed which need no other: what is refused for good comes again, and
    is known then."""
    why = refused_ids(failure)
    return [each for each in ack_ids if _TRANSIENT not in why.get(each, "")] if why else ()
