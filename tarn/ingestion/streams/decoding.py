"""Which decoder reads the messages of a table: by what its declaration says of their format."""

from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.stream import AvroFormat, JsonFormat, StreamTable
from tarn.ingestion.streams.formats import Decoded, Decoder, RegistryAwayError, Unreadable
from tarn.ingestion.streams.formats.avro import AvroFile, AvroRegistry
from tarn.ingestion.streams.formats.json import JsonDecoder
from tarn.ingestion.streams.formats.protobuf import ProtobufFile, ProtobufRegistry
from tarn.ingestion.streams.formats.records import RecordDecoder
from tarn.ingestion.streams.formats.registry import registry_of
from tarn.settings import Settings

__all__ = ["Decoded", "Decoder", "RegistryAwayError", "Unreadable", "decoder"]


def decoder(declared: Declared, table: str, spec: StreamTable, home: Settings) -> Decoder:
    """The decoder of a table's messages; raises TarnError if its schema cannot be had.

    Files with schemas are named from the project's folder.
    """
    format = spec.format
    if isinstance(format, JsonFormat):
        return JsonDecoder(spec)
    where = declared.file.where("tables", table, "format")
    if isinstance(format, AvroFormat):
        if format.schema_file is not None:
            return RecordDecoder(spec, AvroFile(home.project_dir / format.schema_file, where))
        return RecordDecoder(spec, AvroRegistry(registry_of(declared, table)))
    if format.descriptor_file is not None:
        file = home.project_dir / format.descriptor_file
        return RecordDecoder(spec, ProtobufFile(file, format.message, where))
    return RecordDecoder(spec, ProtobufRegistry(registry_of(declared, table)))
