"""How a lake on S3 is reached: one set of credentials for obstore, delta-rs and DuckDB.

Keys come from the variables (environment or `secrets.env`). Without them botocore looks where
AWS's tools look: profile files, SSO, web identity, the container's or the machine's role. It does
so for all three libraries, because each would look in fewer places, and delta-rs in none of the
files once an endpoint is set.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from tarn.errors import TarnError

if TYPE_CHECKING:
    from obstore.store import S3Credential

CONNECT_SECONDS = 5
REQUEST_SECONDS = 120
"""Of one request with its body: a part of a file at a megabit a second comes through."""
RETRIES = 4
RETRY_SECONDS = 20
_TRUE = {"1", "true", "yes", "on"}
_KNOWN_AGAIN = timedelta(minutes=5)
"""obstore asks for temporary credentials again so often; botocore renews them in time."""
DUCKDB_VARIABLES = {
    "key_id": "AWS_ACCESS_KEY_ID",
    "secret": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}


@dataclass(frozen=True)
class Keys:
    """Credentials as they are now."""

    key: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(repr=False)

    def variables(self) -> dict[str, str]:
        """As AWS's variables name them."""
        named = zip(DUCKDB_VARIABLES.values(), (self.key, self.secret, self.token), strict=True)
        return {name: value for name, value in named if value}


@dataclass(frozen=True)
class S3:
    """An S3-compatible service, from variables spelled as AWS's tools spell them."""

    variables: Mapping[str, str] = field(repr=False)

    @cached_property
    def endpoint(self) -> str | None:
        """Of another service than Amazon's."""
        found = self._variable("AWS_ENDPOINT_URL_S3") or self._variable("AWS_ENDPOINT_URL")
        if found and not re.match(r"https?://", found):
            raise TarnError(
                "the endpoint is no http:// or https:// address",
                "AWS_ENDPOINT_URL",
                "write it as https://host:port",
            )
        return found.rstrip("/") if found else None

    @cached_property
    def region(self) -> str:
        named = self._variable("AWS_REGION") or self._variable("AWS_DEFAULT_REGION")
        if named is None and not self._given:
            named = self._session.get_config_variable("region")
        return named or "us-east-1"

    @property
    def is_path_style(self) -> bool:
        """Whether the bucket is named in the path (most services) and not in the host."""
        wanted = self._variable("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")
        return wanted.lower() not in _TRUE if wanted else self.endpoint is not None

    def keys(self) -> Keys:
        """Credentials, renewed when they are about to end. Raises TarnError without any."""
        if self._given:
            key, secret = (self._variable(DUCKDB_VARIABLES[part]) for part in ("key_id", "secret"))
            if not (key and secret):
                raise TarnError(
                    "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set",
                    fix="set both, or neither to use a profile or the machine's role",
                )
            return Keys(key, secret, self._variable("AWS_SESSION_TOKEN"))
        found = self._chain
        if found is None:
            raise TarnError(
                "no credentials for S3",
                fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE,"
                " or run where a role is attached",
            )
        now = found.get_frozen_credentials()
        return Keys(now.access_key, now.secret_key, now.token)

    def store(self, root: str) -> S3Store:
        """The objects under an `s3://` address."""
        style = {"virtual_hosted_style_request": not self.is_path_style}
        if self.endpoint:
            style["endpoint"] = self.endpoint  # type: ignore[assignment]
        return S3Store.from_url(
            root,
            region=self.region,
            conditional_put="etag",
            credential_provider=self._obstore_keys,
            client_options={
                "allow_http": True,
                "connect_timeout": f"{CONNECT_SECONDS}s",
                "timeout": f"{REQUEST_SECONDS}s",
            },
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            },
            **style,  # type: ignore[arg-type]
        )

    def delta_options(self) -> dict[str, str]:
        """Storage options of delta-rs, good for as long as the credentials are."""
        options = {
            **self.keys().variables(),
            "AWS_REGION": self.region,
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": str(not self.is_path_style).lower(),
            "AWS_CONDITIONAL_PUT": "etag",
            "AWS_ALLOW_HTTP": "true",
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "timeout": f"{REQUEST_SECONDS}s",
            "max_retries": str(RETRIES),
            "retry_timeout": f"{RETRY_SECONDS}s",
        }
        return options | ({"AWS_ENDPOINT_URL": self.endpoint} if self.endpoint else {})

    def duckdb_options(self) -> dict[str, str]:
        """Options of DuckDB's secret but for the credentials."""
        options = {"region": self.region, "url_style": "path" if self.is_path_style else "vhost"}
        if self.endpoint:
            scheme, _, host = self.endpoint.partition("://")
            options |= {"endpoint": host, "use_ssl": str(scheme == "https").lower()}
        return options

    def _variable(self, name: str) -> str | None:
        return self.variables.get(name) or self.variables.get(name.lower())

    @property
    def _given(self) -> bool:
        return any(self._variable(DUCKDB_VARIABLES[part]) for part in ("key_id", "secret"))

    @cached_property
    def _session(self) -> Any:
        """Where AWS's own tools look; the import is slow, so only when it is needed."""
        from botocore.session import Session

        session = Session(profile=self._variable("AWS_PROFILE"))
        for option, name in _FILES.items():
            if path := self._variable(name):
                session.set_config_variable(option, path)
        return session

    @cached_property
    def _chain(self) -> Any:
        from botocore.exceptions import BotoCoreError

        try:
            return self._session.get_credentials()
        except BotoCoreError as error:
            raise TarnError(f"no credentials for S3: {error}", fix="mend the profile") from error

    def _obstore_keys(self) -> "S3Credential":
        now = self.keys()
        return {
            "access_key_id": now.key,
            "secret_access_key": now.secret,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _KNOWN_AGAIN,
        }


_FILES = {"credentials_file": "AWS_SHARED_CREDENTIALS_FILE", "config_file": "AWS_CONFIG_FILE"}
_CODE = re.compile(r"<Code>(\w+)</Code>")
_WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"}


def unreachable(error: Exception, root: str, endpoint: str | None) -> TarnError | None:
    """What an S3 failure means to a user, without the request in it; None for another failure."""
    text = str(error)
    found = _CODE.search(text)
    code = found[1] if found else ""
    bucket = root.removeprefix("s3://").partition("/")[0]
    if code == "NoSuchBucket":
        return TarnError(f"there is no bucket {bucket}", root, "create it, or mend TARN_LAKE")
    if code in _WRONG_KEYS or isinstance(error, UnauthenticatedError):
        return TarnError(
            f"S3 does not accept the credentials ({code or 'unauthenticated'})",
            root,
            "mend AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or the profile",
        )
    if code == "AccessDenied" or isinstance(error, PermissionDeniedError) or "403 Forb" in text:
        return TarnError(
            "S3 denies access with these credentials",
            root,
            "allow them to list, get, put and delete objects of the bucket",
        )
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"):
        return TarnError(f"the bucket is in another region ({code})", root, "set AWS_REGION")
    if "error sending request" in text or "Connect" in text or "timed out" in text:
        return TarnError(
            "S3 does not answer",
            endpoint or root,
            "check the network and AWS_ENDPOINT_URL; nothing was changed",
        )
    if isinstance(error, BaseError) or "S3 error" in text:
        return TarnError(f"S3 failed{f' ({code})' if code else ''}", root, "try again")
    return None
