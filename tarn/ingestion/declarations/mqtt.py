"""Topics of an MQTT broker."""

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tarn.ingestion.declarations.base import Name
from tarn.ingestion.declarations.stream import StreamSystem, StreamTable
from tarn.strict_yaml import Spec

_SHARED = "$share"


def _filter(topic: str) -> str:
    levels = topic.split("/")
    if levels[0] == _SHARED and (len(levels) < 3 or not levels[1]):
        raise ValueError("a shared subscription is $share/<group>/<topic>")
    levels = filter_of(topic).split("/")
    is_misplaced = (
        any(len(level) > 1 and set(level) & {"+", "#"} for level in levels) or "#" in levels[:-1]
    )
    if not topic or is_misplaced:
        raise ValueError(f"{topic!r}: + stands for one whole level, # for all from the last on")
    return topic


def filter_of(topic: str) -> str:
    """The topics meant, of a shared subscription too."""
    return topic.split("/", 2)[2] if topic.startswith(f"{_SHARED}/") else topic


class MqttConnection(Spec):
    url: Annotated[str, Field(pattern=r"^((mqtts?|wss?)://[^@/]+(/[^@]*)?|\$\{.+)$")]
    """mqtt://host:1883, mqtts://host:8883 (TLS), or ws:// and wss:// for MQTT over web sockets.
    Username and password are keys of their own."""
    username: str | None = None
    password: str | None = None
    client_id: str | None = None
    """Name by which the broker keeps what has not landed; `tarn-<system>` if not given. Only one
    client may have it."""
    protocol: Literal[5, "3.1.1"] = 5
    """Version of MQTT. A broker that refuses 5 is asked again by 3.1.1."""
    ca_file: str | None = None
    """Certificate of the authority that signed the broker's, if the machine does not know it."""
    certificate_file: str | None = None
    """Tarn's own certificate, if the broker asks for one."""
    key_file: str | None = None
    """Key of that certificate."""

    @model_validator(mode="after")
    def _fits_together(self) -> "MqttConnection":
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file need each other")
        if self.password and not self.username:
            raise ValueError("password needs a username")
        is_tls = self.url.startswith(("mqtts:", "wss:", "${"))
        if not is_tls and (self.ca_file or self.certificate_file):
            raise ValueError("certificates need an mqtts:// or wss:// url")
        return self


class MqttTable(StreamTable):
    topic: Annotated[str, AfterValidator(_filter)]
    """Topics of the table: vans/+/position, where + stands for any one level and # for all that
    follow. A row's own topic is its `_partition`. $share/<group>/… shares the messages with other
    clients of the group."""
    qos: Literal[0, 1] = 1
    """1: the broker keeps what has not landed. 0: it does not, and what is sent while Tarn is away
    or falls behind is lost. Messages sent by 2 come by 1: keys tell a repeated one."""

    @model_validator(mode="after")
    def _has_a_key(self) -> "MqttTable":
        if not self.primary_key:
            raise ValueError(
                "primary_key is missing: MQTT repeats messages and does not name them, so only"
                " columns of their own tell whether one has landed already"
            )
        return self


class MqttSystem(StreamSystem):
    kind: Literal["mqtt"]
    connection: MqttConnection
    tables: dict[Name, MqttTable] = Field(min_length=1)

    @model_validator(mode="after")
    def _topics_are_apart(self) -> "MqttSystem":
        for (one, first), (other, second) in combinations(self.tables.items(), 2):
            if _meet(filter_of(first.topic).split("/"), filter_of(second.topic).split("/")):
                raise ValueError(
                    f"tables.{other}.topic: a message may be of {first.topic} and of"
                    f" {second.topic}; make {one} and {other} two systems"
                )
        return self


def _meet(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether a topic can be of both filters."""
    if "#" in (*one[:1], *other[:1]):
        return True
    if not one or not other:
        return (not one and not other) or (one or other)[0] == "#"
    same = one[0] == other[0] or "+" in (one[0], other[0])
    return same and _meet(one[1:], other[1:])
