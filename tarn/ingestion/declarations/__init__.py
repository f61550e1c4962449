"""What `ingestion/<system>.yml` may say: one upstream system, how to reach it, its tables.

A key that is accepted does what its description says. `${NAME}` and `${NAME:-default}` stand
for variables in any text, and are looked up when the system is loaded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter

from tarn.errors import TarnError
from tarn.ingestion.declarations.delta_sharing import SharingSystem
from tarn.ingestion.declarations.files import FilesSystem
from tarn.ingestion.declarations.kafka import KafkaSystem
from tarn.ingestion.declarations.kinesis import KinesisSystem
from tarn.ingestion.declarations.media import MediaSystem
from tarn.ingestion.declarations.mqtt import MqttSystem
from tarn.ingestion.declarations.pubsub import PubsubSystem
from tarn.ingestion.declarations.rest_api import RestSystem
from tarn.ingestion.declarations.sql_database import SqlSystem
from tarn.ingestion.declarations.table import TableSystem
from tarn.ingestion.declarations.webhook import WebhookSystem
from tarn.settings import Settings
from tarn.strict_yaml import YamlFile, nearest, parse, read

FOLDER = "ingestion"
SCHEMA_FILE = "schema.json"

AnySystem: TypeAlias = (
    SqlSystem
    | FilesSystem
    | RestSystem
    | SharingSystem
    | MediaSystem
    | TableSystem
    | WebhookSystem
    | KafkaSystem
    | PubsubSystem
    | KinesisSystem
    | MqttSystem
)
KINDS: dict[str, type[AnySystem]] = {
    "sql_database": SqlSystem,
    "files": FilesSystem,
    "rest_api": RestSystem,
    "delta_sharing": SharingSystem,
    "media": MediaSystem,
    "table": TableSystem,
    "webhook": WebhookSystem,
    "kafka": KafkaSystem,
    "pubsub": PubsubSystem,
    "kinesis": KinesisSystem,
    "mqtt": MqttSystem,
}


@dataclass(frozen=True)
class Declared:
    """A system and the file that declares it."""

    system: AnySystem
    file: YamlFile

    @property
    def name(self) -> str:
        return self.system.system

    def resolved(self, settings: Settings) -> "Declared":
        """With the values of its variables; raises TarnError for a missing one, by line."""
        data = _expanded(self.file, self.file.data, (), settings)
        file = YamlFile(self.file.name, data, self.file.lines)
        return Declared(parse(file, type(self.system)), file)


def declared(folder: Path, systems: Sequence[str] = ()) -> list[Declared]:
    """The systems declared in a folder, or those named; raises TarnError for any mistake."""
    files = {path.stem: path for path in sorted(folder.glob("*.yml"))}
    if not files:
        raise TarnError("no systems are declared", str(folder), "add a <system>.yml")
    for name in systems:
        if name not in files:
            raise TarnError(f"no system {name!r}{nearest(name, list(files))}", str(folder))
    read_ones: list[Declared] = []
    mistakes: list[str] = []
    for name in dict.fromkeys(systems) if systems else files:
        try:
            read_ones.append(declare(files[name]))
        except TarnError as error:
            mistakes.append(str(error))
    if mistakes:
        raise TarnError("\n".join(mistakes))
    return read_ones


def declare(path: Path) -> Declared:
    """One file, checked."""
    file = read(path, f"{path.parent.name}/{path.name}")
    kind = file.data.get("kind") if isinstance(file.data, dict) else None
    if kind is None:
        raise TarnError(f"key 'kind' is missing{nearest('', list(KINDS))}", file.where())
    if kind not in KINDS:
        raise TarnError(
            f"unknown kind {kind!r}{nearest(str(kind), list(KINDS))}", file.where("kind")
        )
    system = parse(file, KINDS[kind])
    if system.system != path.stem:
        raise TarnError(
            f"system {system.system!r} is declared in {path.name}",
            file.where("system"),
            f"call the file {system.system}.yml",
        )
    return Declared(system, file)


def schema_text() -> str:
    """The JSON Schema of a declaration, by which editors complete and check it."""
    kinds = Annotated[AnySystem, Field(discriminator="kind")]
    schema = TypeAdapter[Any](kinds).json_schema(by_alias=True)
    schema["title"] = "A source system of a Tarn project"
    return json.dumps(schema, indent=2) + "\n"


def _expanded(file: YamlFile, value: Any, at: tuple[str | int, ...], settings: Settings) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(file, each, (*at, key), settings) for key, each in value.items()}
    if isinstance(value, list):
        return [_expanded(file, each, (*at, i), settings) for i, each in enumerate(value)]
    return settings.expand(value, file.where(*at)) if isinstance(value, str) else value
