"""Schemas that messages name: Confluent's wire format, and its registry.

A message begins with a zero and the number of its schema. A schema never changes, so each is
asked for once.
"""

from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from tarn.errors import TarnError
from tarn.ingestion.declarations import Declared
from tarn.ingestion.declarations.stream import Registry
from tarn.ingestion.streams.formats import RegistryAwayError, UnreadableError

HEADER = 5
_SECONDS = 10
_NOT_THERE = 404
_AVRO = "AVRO"
_SERIALIZED = "serialized"
"""Of protobuf schemas: compiled, so that none needs a compiler here."""
T = TypeVar("T")


def registry_of(declared: Declared, table: str) -> "Schemas":
    """The registry that a system declares; raises TarnError if it declares none."""
    connection = getattr(declared.system, "connection", None)
    registry = getattr(connection, "schema_registry", None)
    if registry is None:
        raise TarnError(
            "messages name their schema in a registry, and none is declared",
            declared.file.where("tables", table, "format"),
            "add schema_registry: {url: …} to the connection, or name a file with the schema",
        )
    return Schemas(registry, declared.file.where("connection", "schema_registry"))


class Schemas:
    """A registry's schemas by number."""

    def __init__(self, registry: Registry, where: str) -> None:
        self.url, self.where = registry.url, where
        settings: dict[str, Any] = {"url": registry.url, "timeout": _SECONDS, "max.retries": 1}
        if registry.username is not None:
            settings["basic.auth.user.info"] = f"{registry.username}:{registry.password or ''}"
        if registry.ca_file is not None:
            settings["ssl.ca.location"] = registry.ca_file
        try:
            self.client = SchemaRegistryClient(settings)
        except (ValueError, OSError) as error:
            raise TarnError(f"the schema registry: {error}", where, "mend its address") from error

    def schema(self, number: int, kind: str) -> Schema:
        """A schema; raises UnreadableError if there is none of that kind."""
        try:
            schema = self.client.get_schema(number, fmt=_format(kind))
        except Exception as error:
            if isinstance(error, SchemaRegistryError) and error.http_status_code == _NOT_THERE:
                raise UnreadableError(f"schema {number} is not in the registry") from error
            self._away(error)
        if (schema.schema_type or _AVRO) != kind:
            raise UnreadableError(f"schema {number} is {schema.schema_type}, not {kind}")
        return schema

    def references(self, schema: Schema, kind: str) -> dict[str, Schema]:
        """The schemas that one builds on, and theirs, by name, each before its user."""
        found: dict[str, Schema] = {}
        for each in schema.references or []:
            try:
                told = self.client.get_version(
                    str(each.subject), each.version or "latest", fmt=_format(kind)
                )
            except Exception as error:
                self._away(error)
            found |= {**self.references(told.schema, kind), str(each.name): told.schema}
        return found

    def _away(self, error: Exception) -> NoReturn:
        raise RegistryAwayError(
            f"the schema registry {self.url} does not give schemas: {error}",
            self.where,
            "it is asked again; check that it runs and that it knows the user",
        ) from error


class Framed(Generic[T]):
    """What is made of each schema that messages name, once."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make
        self.made: dict[int, T] = {}
        self.missing: dict[int, str] = {}

    def forget_missing(self) -> None:
        """Ask again for schemas that were not there."""
        self.missing.clear()

    def of(self, value: bytes) -> T:
        """Of a message's schema; raises UnreadableError if it names none that can be had."""
        if len(value) < HEADER or value[0] != 0:
            raise UnreadableError("it does not begin with zero and the number of a schema")
        number = int.from_bytes(value[1:HEADER], "big")
        if number in self.made:
            return self.made[number]
        if number in self.missing:
            raise UnreadableError(self.missing[number])
        try:
            return self.made.setdefault(number, self.make(number))
        except UnreadableError as error:
            self.missing[number] = str(error)
            raise


def _format(kind: str) -> str:
    return "" if kind == _AVRO else _SERIALIZED
