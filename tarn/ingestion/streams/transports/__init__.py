"""Which class reads which kind of stream."""

from collections.abc import Callable
from importlib import import_module
from typing import TypeAlias

from tarn.ingestion.declarations import Declared
from tarn.ingestion.streams import Transport
from tarn.settings import Settings

_Kind: TypeAlias = Callable[[Declared, Settings], Transport]

TRANSPORTS = {
    "kafka": "kafka:Kafka",
    "kinesis": "kinesis:Kinesis",
    "mqtt": "mqtt:Mqtt",
    "pubsub": "pubsub:Pubsub",
}
"""Imported only where a system needs it: each brings its client."""


def transport(declared: Declared, home: Settings) -> Transport:
    """The connection of a system whose variables are resolved. Connects to nothing yet."""
    module, _, name = TRANSPORTS[declared.system.kind].partition(":")
    kind: _Kind = getattr(import_module(f"tarn.ingestion.streams.transports.{module}"), name)
    return kind(declared, home)
