"""Clients of Amazon's services: whose credentials they have, and what their failures mean."""

from collections.abc import Mapping
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError
from botocore.session import Session, get_session

from tarn.errors import TarnError
from tarn.ingestion.declarations.kinesis import KinesisConnection
from tarn.storage.s3 import S3

EXPIRED = {"ExpiredTokenException", "ExpiredToken"}
STALE = "ExpiredIteratorException"
"""Five minutes after it was given; another is given for the asking."""
NOT_THERE = "ResourceNotFoundException"
_DENIED = {
    "AccessDeniedException",
    "AccessDenied",
    "KMSAccessDeniedException",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "InvalidClientTokenId",
    "MissingAuthenticationTokenException",
    "IncompleteSignature",
}
_CONFIG = Config(
    connect_timeout=5,
    read_timeout=20,
    retries={"mode": "standard", "total_max_attempts": 2},
    ignore_configured_endpoint_urls=True,
)


def kinesis_client(
    connection: KinesisConnection, variables: Mapping[str, str], system: str, where: str
) -> Any:
    """Raises TarnError without credentials. Connects to nothing but what gives a role's."""
    try:
        session = _session(connection, variables)
        if connection.role:
            session = _in_role(session, connection.role, system)
        return boto3.Session(botocore_session=session).client(
            "kinesis",
            region_name=connection.region,
            endpoint_url=connection.endpoint_url or variables.get("AWS_ENDPOINT_URL_KINESIS"),
            config=_CONFIG,
        )
    except (BotoCoreError, ValueError) as error:
        raise TarnError(
            f"Kinesis cannot be asked: {error}", where, "mend the connection"
        ) from error


def code(error: BaseException) -> str:
    """The service's own name of a failure; empty of one that is not the service's."""
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else ""


def unmendable(error: Exception, where: str) -> TarnError | None:
    """What a failure means to a user; None of one that passes by itself."""
    name = code(error)
    if name in (*EXPIRED, STALE) or isinstance(error, ConnectionError | HTTPClientError):
        return None
    if isinstance(error, ClientError):
        is_denied = name in _DENIED
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        is_ours = 400 <= status < 500 and not _is_limit(name)
        if not (is_denied or is_ours):
            return None
        fix = "let these credentials list and read the stream" if is_denied else None
        fix = "create it, or mend its name, the region or the account" if name == NOT_THERE else fix
        return TarnError(f"{name}: {error.response['Error'].get('Message', '')}", where, fix)
    if isinstance(error, BotoCoreError):
        return TarnError(str(error), where, "give credentials as AWS's tools find them")
    return None


def _is_limit(name: str) -> bool:
    words = ("Throughput", "Throttl", "LimitExceeded", "RequestLimit", "SlowDown", "TooMany")
    return any(word in name for word in words)


def _session(connection: KinesisConnection, variables: Mapping[str, str]) -> Session:
    """With the variables of `secrets.env` too, which the environment does not have."""
    if connection.profile:
        return Session(profile=connection.profile)
    session = get_session()
    key, secret = connection.access_key_id, connection.secret_access_key
    if key and secret:
        session.set_credentials(key, secret)
    elif variables.get("AWS_ACCESS_KEY_ID"):
        keys = S3(variables).keys()
        session.set_credentials(keys.key, keys.secret, keys.token)
    elif variables.get("AWS_PROFILE"):
        return Session(profile=variables["AWS_PROFILE"])
    return session


def _in_role(session: Session, role: str, system: str) -> Session:
    fetcher = AssumeRoleCredentialFetcher(
        session.create_client,
        session.get_credentials(),
        role,
        extra_args={"RoleSessionName": f"tarn-{system}"},
    )
    taken = get_session()
    taken._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
    return taken
