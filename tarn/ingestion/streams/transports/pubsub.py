"""Google's Pub/Sub: each table is a subscription from which messages are pulled.

One request a subscription is under way at a time, so no more is in memory than what the consumer
has asked for and one answer. A request is never given up while it waits: what it had been answered
would come again only when its lease has ended.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Event
from typing import Any

import grpc  # type: ignore[import-untyped]
import pyarrow as pa
from google.api_core import exceptions as api
from google.api_core.gapic_v1.routing_header import to_grpc_metadata
from google.pubsub_v1 import types
from google.pubsub_v1.services.subscriber import SubscriberClient

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.pubsub import PubsubSystem
from tarn.ingestion.masking import masked, secrets_in
from tarn.ingestion.names import snake_case
from tarn.ingestion.sources import Offered
from tarn.ingestion.streams import Batch, Place, Position, Transport
from tarn.ingestion.streams.transports.gcp import FAILURES, Failure, called, subscriber, unmendable
from tarn.ingestion.streams.transports.leases import Leases
from tarn.settings import Settings

_MOST = 1_000
"""Messages that Pub/Sub gives at once."""
_PULL_SECONDS = 90.0
"""After so long without a message the request is made anew."""
_LONGEST_PAUSE = 15.0
_CALL_SECONDS = 20.0
_LOOK_SECONDS = 0.5


class Pubsub(Transport):
    """The subscriptions of one project, or more."""

    keeps_positions = False
    offset_type = pa.string()

    def __init__(self, declared: Declared, home: Settings) -> None:
        assert isinstance(declared.system, PubsubSystem)
        self.declared, self.home, self.system = declared, home, declared.system
        self.secrets = frozenset(secrets_in(self.system.connection.model_dump()))
        self._client: SubscriberClient | None = None
        self._leases: Leases | None = None
        self._pulls: dict[str, _Pull] = {}
        self._arrived = Event()

    @property
    def client(self) -> SubscriberClient:
        if self._client is None:
            where = self.declared.file.where("connection")
            self._client = subscriber(self.system.connection, self.home, where)
        return self._client

    def open(self, position: Callable[[Place], Position | None]) -> None:
        self._leases = Leases(self.client)
        for table in self.system.tables:
            name = self.system.subscription(table)
            pull = self.client.transport.pull
            self._pulls[table] = _Pull(table, name, pull, self._leases, self._arrived)

    def read(self, seconds: float, most: int) -> list[Batch]:
        until = time.monotonic() + seconds
        while True:
            self._arrived.clear()
            batches = [batch for pull in self._pulls.values() for batch in self._taken(pull)]
            for pull in self._pulls.values():
                pull.begin(min(most, _MOST))
            left = until - time.monotonic()
            if batches or left <= 0:
                return batches
            self._arrived.wait(min(left, _LOOK_SECONDS))

    def leave(self, table: str) -> None:
        if pull := self._pulls.pop(table, None):
            pull.cancel()
            assert self._leases is not None
            self._leases.give_back(pull.subscription)

    def landed(self, batches: Sequence[Batch]) -> None:
        assert self._leases is not None
        for batch in batches:
            self._leases.landed(self.system.subscription(batch.table), batch.receipts)

    def lag(self) -> Mapping[Place, int | None]:
        """Only Google's monitoring knows, minutes later."""
        return {(pull.table, pull.partition): None for pull in self._pulls.values()}

    @property
    def trouble(self) -> str | None:
        troubles = (pull.trouble for pull in self._pulls.values() if pull.trouble)
        return next((masked(text, self.secrets) for text in troubles), None)

    def close(self) -> None:
        for pull in self._pulls.values():
            pull.cancel()
        self._pulls = {}
        if self._leases:
            self._leases.close()
        if self._client:
            self._client.transport.close()  # type: ignore[no-untyped-call]
        self._leases = self._client = None

    def check(self) -> list[str]:
        try:
            return [self._checked(table) for table in self.system.tables]
        finally:
            self.close()

    def offered(self) -> list[Offered]:
        project = self.system.connection.project
        where = self.declared.file.where("connection")
        try:
            listed = self.client.list_subscriptions(
                project=f"projects/{project}", timeout=_CALL_SECONDS
            )
            return [_offered(each) for each in listed if not _unreadable(each)]
        except FAILURES as failure:
            raise self._told(failure, where) from failure
        finally:
            self.close()

    def _taken(self, pull: "_Pull") -> Iterator[Batch]:
        try:
            batch = pull.taken()
        except FAILURES as failure:
            if error := unmendable(failure, self._where(pull.table)):
                raise error from failure
            pull.failed(failure)
        else:
            if batch:
                yield batch

    def _checked(self, table: str) -> str:
        name = self.system.subscription(table)
        try:
            found = self.client.get_subscription(
                subscription=name, retry=None, timeout=_CALL_SECONDS
            )
        except api.Forbidden:
            # Reading and looking are two permissions.
            return f"{table}: {name} may not be looked at with these credentials"
        except FAILURES as failure:
            raise self._told(failure, self._where(table)) from failure
        if reason := _unreadable(found):
            raise TarnError(f"{name} {reason}", self._where(table), "make one that is pulled from")
        return f"{table}: {name}, {_described(found)}"

    def _told(self, failure: Failure, where: str) -> TarnError:
        error = unmendable(failure, where)
        return error or TarnError(f"Pub/Sub does not answer: {failure}", where, "try again later")

    def _where(self, table: str) -> str:
        return self.declared.file.where("tables", table, "subscription")


class _Pull:
    """The request for messages of one subscription."""

    def __init__(
        self, table: str, subscription: str, pull: Any, leases: Leases, arrived: Event
    ) -> None:
        self.table, self.subscription, self.leases = table, subscription, leases
        self._pull, self._arrived = pull, arrived
        self.partition = subscription.rpartition("/")[2]
        self.trouble: str | None = None
        self._call: Any = None
        self._is_answered = False
        self._failures, self._again_at = 0, 0.0

    def begin(self, most: int) -> None:
        """Ask, unless that has been done, or has just failed."""
        if self._call is not None or time.monotonic() < self._again_at:
            return
        request = types.PullRequest(subscription=self.subscription, max_messages=most)
        header = to_grpc_metadata([("subscription", self.subscription)])  # type: ignore[no-untyped-call]
        self._is_answered = False
        self._call = self._pull.future(request, timeout=_PULL_SECONDS, metadata=[header])
        self._call.add_done_callback(self._answered)

    def taken(self) -> Batch | None:
        """What has come; raises why nothing will."""
        if self._call is None or not self._is_answered:
            return None
        call, self._call = self._call, None
        try:
            received = _received(call)
        except grpc.RpcError as error:
            failure = called(error)
            if not isinstance(failure, api.GatewayTimeout):
                raise failure from error
            received = ()
        self.trouble, self._failures = None, 0
        return _batch(self.table, self.partition, received) if received else None

    def failed(self, failure: Failure) -> None:
        """Try again after a while."""
        self.trouble = f"{self.partition}: {failure}"
        self._again_at = time.monotonic() + min(0.25 * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _answered(self, call: Any) -> None:
        """In a thread of gRPC: leases run from now on, whenever the answer is looked at."""
        if not call.cancelled() and call.exception() is None:
            self.leases.hold(self.subscription, [each.ack_id for each in _received(call)])
        self._is_answered = True
        self._arrived.set()


def _received(call: Any) -> Sequence[Any]:
    """Plain messages: Google's own wrapping takes ten times as long as all else."""
    messages: Sequence[Any] = types.PullResponse.pb(call.result()).received_messages
    return messages


def _batch(table: str, partition: str, received: Sequence[Any]) -> Batch:
    messages = [each.message for each in received]
    sent = [message.publish_time for message in messages]
    return Batch(
        table,
        partition,
        [message.data for message in messages],
        [message.message_id for message in messages],
        [time.seconds * 1_000_000 + time.nanos // 1_000 for time in sent],
        [message.ordering_key.encode() or None for message in messages],
        receipts=[each.ack_id for each in received],
    )


def _unreadable(found: types.Subscription) -> str | None:
    """Why nothing can be pulled from a subscription."""
    if found.push_config.push_endpoint or found.bigquery_config or found.cloud_storage_config:
        return "delivers elsewhere by itself"
    return "is detached from its topic" if found.detached else None


def _described(found: types.Subscription) -> str:
    days = found.message_retention_duration.total_seconds() / 86400
    told = [f"of {found.topic}"]
    told += [f"keeps what is not read for {days:g} days"] if days else []
    told += ["delivers in order of keys"] if found.enable_message_ordering else []
    told += ["delivers exactly once"] if found.enable_exactly_once_delivery else []
    told += [f"only {found.filter}"] if found.filter else []
    if dead := found.dead_letter_policy:
        told += [f"gives up after {dead.max_delivery_attempts} times: {dead.dead_letter_topic}"]
    return ", ".join(told)


def _offered(found: types.Subscription) -> Offered:
    name = found.name.rpartition("/")[2]
    table = snake_case(name)
    spec = {} if table == name else {"subscription": name}
    return Offered(table, spec, {}, f"Messages of {found.topic.rpartition('/')[2]}.")
