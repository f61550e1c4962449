"""Clients of Google's Pub/Sub: whose credentials they have, and what their failures mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google.auth
import grpc  # type: ignore[import-untyped]
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.pubsub_v1.services.subscriber import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion.declarations.pubsub import PubsubConnection
from tarn.settings import Settings

Failure = api.GoogleAPICallError | auth.GoogleAuthError
"""What a call may end with."""
FAILURES = (api.GoogleAPICallError, auth.GoogleAuthError)
_EMULATOR = "PUBSUB_EMULATOR_HOST"
_CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.max_reconnect_backoff_ms", 10_000),
]
"""gRPC itself would wait two minutes before it looks for a server again that was away."""
_FIXES: Mapping[type[Exception], str] = {
    api.NotFound: "create it, or mend its name or the project",
    api.Forbidden: "give these credentials the role Pub/Sub Subscriber on it",
    api.Unauthorized: "mend credentials_file, or the credentials of this machine",
    api.BadRequest: "mend the declaration, or the subscription: it must be one that is pulled from",
    api.MethodNotImplemented: f"mend {_EMULATOR}",
}
"""Of failures that no waiting mends."""


def subscriber(connection: PubsubConnection, home: Settings, where: str) -> SubscriberClient:
    """A client that has not connected yet; raises TarnError without credentials."""
    if emulator := home.variables.get(_EMULATOR):
        channel = grpc.insecure_channel(emulator, _OPTIONS)
        return SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
    try:
        credentials = _credentials(connection, home)
    except (auth.GoogleAuthError, ValueError, OSError) as error:
        fix = f"name a credentials_file, or set {_CREDENTIALS}"
        raise TarnError(f"no credentials for Google: {error}", where, fix) from error
    transport = SubscriberGrpcTransport(credentials=credentials, channel=_channel)
    return SubscriberClient(transport=transport)


def called(error: grpc.RpcError) -> api.GoogleAPICallError:
    """The failure of a call that was made without the client."""
    found: api.GoogleAPICallError = api.from_grpc_error(error)  # type: ignore[no-untyped-call]
    return found


def unmendable(error: Failure, where: str) -> TarnError | None:
    """What a failure means to a user; None of one that passes by itself."""
    if isinstance(error, auth.GoogleAuthError):
        told = TarnError(f"Google refuses the credentials: {error}", where, "mend them")
        return None if error.retryable else told
    fix = next((fix for kind, fix in _FIXES.items() if isinstance(error, kind)), None)
    return TarnError(f"Pub/Sub: {error.message}", where, fix) if fix else None


def refused_ids(error: Failure) -> Mapping[str, str]:
    """Why single acknowledgements failed, where a subscription delivers exactly once; the other
    ones of the call have gone well."""
    details = error.details if isinstance(error, api.GoogleAPICallError) else ()
    infos = (each for each in details if isinstance(each, ErrorInfo))
    return {
        ack_id: why for info in infos for ack_id, why in info.metadata.items() if "FAILURE" in why
    }


def _credentials(connection: PubsubConnection, home: Settings) -> Any:
    """With the variables of `secrets.env` too, which the environment does not have."""
    scopes = SubscriberGrpcTransport.AUTH_SCOPES
    file = connection.credentials_file or home.variables.get(_CREDENTIALS)
    if file is None:
        return google.auth.default(scopes)[0]
    path = str(Path(home.project_dir, file))
    return google.auth.load_credentials_from_file(path, scopes)[0]  # type: ignore[no-untyped-call]


def _channel(host: str, **options: Any) -> grpc.Channel:
    options["options"] = [*options.get("options", ()), *_OPTIONS]
    return SubscriberGrpcTransport.create_channel(host, **options)
