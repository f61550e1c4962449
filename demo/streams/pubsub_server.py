"""A Pub/Sub server in memory, of which Google's own clients notice no difference.

Topics, subscriptions, publishing, pulling, acknowledging and deadlines are as documented: what is
not acknowledged in time comes again, in a subscription with ordering with all after it of its key;
one with exactly-once delivery says which acknowledgements came too late. There is no streaming
pull and no filter.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from threading import Condition, Event
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

_WORKERS = 64
"""Each pull that waits takes one."""
_LONGEST_WAIT = 30.0
_DEADLINES = range(10, 601)
_DEFAULT_DEADLINE = 10
Message = Any
"""Google's types in their plain form, which their library gives no names to."""


class _Refusal(Exception):
    """An answer other than OK."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass
class _Subscription:
    """What waits for one subscriber: not delivered yet, or not acknowledged."""

    made: Message
    waiting: list[tuple[int, Message]] = field(default_factory=list)
    """A heap by order of publication."""
    leased: dict[str, tuple[float, int, Message]] = field(default_factory=dict)
    """Until when, by acknowledgement id."""
    _ids: Iterator[int] = field(default_factory=count)

    def put(self, number: int, message: Message) -> None:
        heappush(self.waiting, (number, message))

    def take(self, most: int, now: float) -> list[Message]:
        self._take_back(now)
        taken: list[Message] = []
        while self.waiting and len(taken) < most:
            number, message = heappop(self.waiting)
            ack_id = f"{message.message_id}-{next(self._ids)}"
            self.leased[ack_id] = (now + self.made.ack_deadline_seconds, number, message)
            taken.append(_plain(types.ReceivedMessage)(ack_id=ack_id, message=message))
        return taken

    def acknowledge(self, ack_ids: Iterable[str], now: float) -> list[str]:
        """Those that came too late."""
        self._take_back(now)
        return [ack_id for ack_id in ack_ids if self.leased.pop(ack_id, None) is None]

    def extend(self, ack_ids: Iterable[str], seconds: int, now: float) -> list[str]:
        """Those that came too late. No seconds: deliver again at once."""
        self._take_back(now)
        late = []
        for ack_id in ack_ids:
            if ack_id not in self.leased:
                late.append(ack_id)
                continue
            _, number, message = self.leased[ack_id]
            self.leased[ack_id] = (now + seconds, number, message)
        if not seconds:
            self._take_back(now)
        return late

    def _take_back(self, now: float) -> None:
        """Leases that have ended; where order matters, with those after them of their key."""
        ended = {each: lease for each, lease in self.leased.items() if lease[0] <= now}
        first: dict[str, int] = {}
        for _, number, message in ended.values() if self.made.enable_message_ordering else ():
            if key := message.ordering_key:
                first[key] = min(number, first.get(key, number))
        for ack_id, (_, number, message) in list(self.leased.items()):
            follows = number > first.get(message.ordering_key, number)
            if ack_id in ended or follows:
                del self.leased[ack_id]
                self.put(number, message)


class _Server:
    """Both of Pub/Sub's services."""

    def __init__(self) -> None:
        self.topics: dict[str, Message] = {}
        self.subscriptions: dict[str, _Subscription] = {}
        self.changed = Condition()
        self._numbers = count(1)

    def CreateTopic(self, request: Message, _: grpc.ServicerContext) -> Message:
        _refuse_twice(request.name, self.topics)
        self.topics[request.name] = request
        return request

    def GetTopic(self, request: Message, _: grpc.ServicerContext) -> Message:
        return _found(request.topic, self.topics)

    def ListTopics(self, request: Message, _: grpc.ServicerContext) -> Message:
        found = _of(request.project, self.topics)
        return _plain(types.ListTopicsResponse)(topics=found)

    def Publish(self, request: Message, _: grpc.ServicerContext) -> Message:
        _found(request.topic, self.topics)
        for message in request.messages:
            if not (message.data or message.attributes):
                _refuse("INVALID_ARGUMENT", "a message must have data or an attribute")
        readers = [each for each in self.subscriptions.values() if each.made.topic == request.topic]
        for message in request.messages:
            number = next(self._numbers)
            message.message_id = str(number)
            message.publish_time.GetCurrentTime()
            for reader in readers:
                reader.put(number, message)
        self.changed.notify_all()
        ids = [message.message_id for message in request.messages]
        return _plain(types.PublishResponse)(message_ids=ids)

    def CreateSubscription(self, request: Message, _: grpc.ServicerContext) -> Message:
        _refuse_twice(request.name, self.subscriptions)
        _found(request.topic, self.topics)
        request.ack_deadline_seconds = request.ack_deadline_seconds or _DEFAULT_DEADLINE
        if request.ack_deadline_seconds not in _DEADLINES:
            _refuse("INVALID_ARGUMENT", "ack_deadline_seconds is from 10 to 600")
        self.subscriptions[request.name] = _Subscription(request)
        return request

    def GetSubscription(self, request: Message, _: grpc.ServicerContext) -> Message:
        return _found(request.subscription, self.subscriptions).made

    def ListSubscriptions(self, request: Message, _: grpc.ServicerContext) -> Message:
        found = [each.made for each in _of(request.project, self.subscriptions)]
        return _plain(types.ListSubscriptionsResponse)(subscriptions=found)

    def DeleteSubscription(self, request: Message, _: grpc.ServicerContext) -> Message:
        _found(request.subscription, self.subscriptions)
        del self.subscriptions[request.subscription]
        return Empty()

    def Pull(self, request: Message, context: grpc.ServicerContext) -> Message:
        if request.max_messages < 1:
            _refuse("INVALID_ARGUMENT", "max_messages is at least 1")
        left = context.time_remaining()
        until = time.monotonic() + min(_LONGEST_WAIT, left if left is not None else _LONGEST_WAIT)
        while context.is_active():
            reader = _found(request.subscription, self.subscriptions)
            taken = reader.take(request.max_messages, time.monotonic())
            if taken or request.return_immediately or time.monotonic() >= until:
                return _plain(types.PullResponse)(received_messages=taken)
            # Deadlines of other messages may end meanwhile.
            self.changed.wait(min(0.5, until - time.monotonic()))
        return _plain(types.PullResponse)()

    def Acknowledge(self, request: Message, context: grpc.ServicerContext) -> Message:
        reader = _found(request.subscription, self.subscriptions)
        _tell_late(reader, reader.acknowledge(request.ack_ids, time.monotonic()), context)
        return Empty()

    def ModifyAckDeadline(self, request: Message, context: grpc.ServicerContext) -> Message:
        reader = _found(request.subscription, self.subscriptions)
        if not 0 <= request.ack_deadline_seconds < _DEADLINES.stop:
            _refuse("INVALID_ARGUMENT", "ack_deadline_seconds is from 0 to 600")
        late = reader.extend(request.ack_ids, request.ack_deadline_seconds, time.monotonic())
        self.changed.notify_all()
        _tell_late(reader, late, context)
        return Empty()


_CALLS: dict[str, dict[str, Any]] = {
    "Publisher": {
        "CreateTopic": types.Topic,
        "GetTopic": types.GetTopicRequest,
        "ListTopics": types.ListTopicsRequest,
        "Publish": types.PublishRequest,
    },
    "Subscriber": {
        "CreateSubscription": types.Subscription,
        "GetSubscription": types.GetSubscriptionRequest,
        "ListSubscriptions": types.ListSubscriptionsRequest,
        "DeleteSubscription": types.DeleteSubscriptionRequest,
        "Pull": types.PullRequest,
        "Acknowledge": types.AcknowledgeRequest,
        "ModifyAckDeadline": types.ModifyAckDeadlineRequest,
    },
}
"""What each call of a service is given."""


@contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """Serve on 127.0.0.1; the address, as PUBSUB_EMULATOR_HOST expects it."""
    service = _Server()
    server = grpc.server(ThreadPoolExecutor(_WORKERS), options=[("grpc.so_reuseport", 0)])
    for name, calls in _CALLS.items():
        handlers = {call: _handler(service, call, given) for call, given in calls.items()}
        generic = grpc.method_handlers_generic_handler(f"google.pubsub.v1.{name}", handlers)
        server.add_generic_rpc_handlers((generic,))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        with service.changed:
            service.changed.notify_all()
        server.stop(0).wait()


def _handler(service: _Server, call: str, given: Any) -> grpc.RpcMethodHandler:
    method: Callable[[Message, grpc.ServicerContext], Message] = getattr(service, call)

    def answer(request: Message, context: grpc.ServicerContext) -> Message:
        try:
            with service.changed:
                return method(request, context)
        except _Refusal as refusal:
            context.abort(refusal.code, refusal.text)

    return grpc.unary_unary_rpc_method_handler(
        answer, _plain(given).FromString, lambda message: message.SerializeToString()
    )


def _plain(kind: Any) -> Any:
    """The protobuf class that Google's wraps."""
    return kind.pb()


def _refuse(code: str, text: str) -> NoReturn:
    raise _Refusal(grpc.StatusCode[code], text)


def _refuse_twice(name: str, known: dict[str, Any]) -> None:
    if name in known:
        _refuse("ALREADY_EXISTS", f"Resource already exists in the project (resource={name}).")


def _found(name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        _refuse("NOT_FOUND", f"Resource not found (resource={name.rpartition('/')[2]}).")
    return known[name]


def _of(project: str, known: dict[str, Any]) -> list[Any]:
    return [each for name, each in known.items() if name.startswith(f"{project}/")]


def _tell_late(reader: _Subscription, late: list[str], context: grpc.ServicerContext) -> None:
    """Only exactly-once delivery says so; else being late is nobody's fault."""
    if not (late and reader.made.enable_exactly_once_delivery):
        return
    why = dict.fromkeys(late, "PERMANENT_FAILURE_INVALID_ACK_ID")
    details = Packed()
    details.Pack(ErrorInfo(reason="ACKNOWLEDGE_FAILED", metadata=why))
    code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
    status = Status(code=code, message="Some acknowledgements came too late.", details=[details])
    context.abort_with_status(rpc_status.to_status(status))


if __name__ == "__main__":
    with serve(int(sys.argv[1])) as address:
        print(f"PUBSUB_EMULATOR_HOST={address}", flush=True)
        with suppress(KeyboardInterrupt):
            Event().wait()
