"""Events that senders post to `tarn collect`."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator

from tarn.ingestion.declarations.base import Name, System, Table
from tarn.strict_yaml import Spec

EVENT_ID = "_event_id"
RECEIVED_AT = "_received_at"

Secret: TypeAlias = Annotated[str, Field(min_length=8)]
Positive: TypeAlias = Annotated[int, Field(gt=0)]


class TokenAuth(Spec):
    type: Literal["token"]
    token: Secret
    header: str = "Authorization"
    """Header that bears the token, alone or after the word Bearer."""


class SignedTime(Spec):
    header: str
    """Header with the time of sending, in seconds since 1970."""
    tolerance_seconds: Positive = 300
    """An event that was sent longer ago, or so much later than now, is refused."""
    signed: str = "{timestamp}.{body}"
    """What the signature is of."""

    @field_validator("signed")
    @classmethod
    def _has_both(cls, signed: str) -> str:
        if signed.count("{timestamp}") != 1 or signed.count("{body}") != 1:
            raise ValueError("must contain {timestamp} and {body} once each")
        return signed


class HmacAuth(Spec):
    type: Literal["hmac"]
    secret: Secret
    header: str
    """Header that bears the signature: X-Hub-Signature-256, X-Shopify-Hmac-Sha256 …"""
    algorithm: Literal["sha256", "sha512", "sha1"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    """What stands before the signature: sha256= of GitHub's."""
    timestamp: SignedTime | None = None
    """Given where the sender signs the time too, as Slack does; without it only the body is
    signed, and an old event can be posted again."""


class StripeAuth(Spec):
    type: Literal["stripe"]
    secret: Secret
    tolerance_seconds: Positive = 300
    """An event that was sent longer ago, or so much later than now, is refused."""


Auth: TypeAlias = Annotated[TokenAuth | HmacAuth | StripeAuth, Field(discriminator="type")]


class WebhookConnection(Spec):
    auth: Auth
    """How senders prove who they are."""
    max_bytes: Positive = 1_048_576
    """A larger body is refused."""


class WebhookTable(Table):
    id_header: str | None = None
    """Header that names an event (X-GitHub-Delivery, X-Shopify-Webhook-Id), kept as _event_id: an
    event that is sent again is then known. Without it each post is an event of its own."""
    primary_key: tuple[str, ...] = (EVENT_ID,)
    """Columns that tell events apart: a field of theirs, or _event_id."""
    write: Literal["append", "merge"] = "append"
    """append keeps each event once, as it came first; merge keeps what came last of each key."""


class WebhookSystem(System):
    kind: Literal["webhook"]
    connection: WebhookConnection
    tables: dict[Name, WebhookTable] = Field(min_length=1)
    """Senders post to /<system>/<table>."""
