"""Which decoder reads the messages of a table: by what its declaration says of their format."""

from pathlib import Path

from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.stream import StreamTable
from tarn.ingestion.streams.formats import Decoded, Decoder, RegistryAwayError, Unreadable
from tarn.ingestion.streams.formats.json import JsonDecoder

__all__ = ["Decoded", "Decoder", "RegistryAwayError", "Unreadable", "decoder"]


def decoder(declared: Declared, table: str, spec: StreamTable, home: Path) -> Decoder:
    """The decoder of a table's messages; raises TarnError if its schema cannot be had.

    home: the project's folder, from which files with schemas are named.
    """
    return JsonDecoder(spec)
