"""YAML read strictly: every mistake in a file told at once, with its line and the nearest key."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from tarn.errors import TarnError

Location = tuple[str | int, ...]
"""Keys and list positions from the top of a file to a value."""
Model = TypeVar("Model", bound=BaseModel)


class Spec(BaseModel):
    """Base of all declarations: unknown keys are mistakes, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, serialize_by_alias=True
    )


_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SPAN = re.compile(r"(\d+)(ms|s|m|h|d)")


def duration(text: str) -> timedelta:
    """The time that `90s`, `5m` or `1h` says; raises ValueError for anything else."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time such as 1s, 5m or 2h")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _span(text: str) -> str:
    duration(text)
    return text


Time: TypeAlias = Annotated[
    str, AfterValidator(_span), WithJsonSchema({"type": "string", "pattern": rf"^{_SPAN.pattern}$"})
]


@dataclass(frozen=True)
class YamlFile:
    """The values of a YAML file and the line each stands on."""

    name: str
    """Path as users know it, for messages."""
    data: Any
    lines: Mapping[Location, int]

    def where(self, *location: str | int) -> str:
        """`file:line` of a value, or of what surrounds it when it is not in the file."""
        while location and location not in self.lines:
            location = location[:-1]
        return f"{self.name}:{self.lines.get(location, 1)}"


def read(path: Path, name: str) -> YamlFile:
    """Read a file; raises TarnError for what is no YAML and for a key given twice."""
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    lines: dict[Location, int] = {}
    try:
        node = loader.get_single_node()
        data = _value(node, (), loader, lines) if node else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise TarnError(str(error.problem), f"{name}:{line}", "mend the YAML") from error
    finally:
        loader.dispose()
    return YamlFile(name, data, lines)


def parse(file: YamlFile, model: type[Model]) -> Model:
    """The file as a model; raises one TarnError that lists every mistake by line."""
    try:
        return model.model_validate(file.data)
    except ValidationError as error:
        found = {_mistake(file, model, detail) for detail in error.errors()}
        mistakes = sorted(found, key=lambda each: int(each[0].rpartition(":")[2]))
    if len(mistakes) == 1:
        where, what = mistakes[0]
        raise TarnError(what, where)
    listed = "".join(f"\n  {where}: {what}" for where, what in mistakes)
    raise TarnError(f"{len(mistakes)} mistakes{listed}", file.name)


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?` for a word that resembles a known one, else the known ones."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def _value(
    node: yaml.Node, at: Location, loader: yaml.SafeLoader, lines: dict[Location, int]
) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*at, i), loader, lines) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    loader.flatten_mapping(node)
    values: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if key in values:
            mark = key_node.start_mark
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=mark)
        lines[(*at, key)] = key_node.start_mark.line + 1
        values[key] = _value(value_node, (*at, key), loader, lines)
    return values


def _mistake(file: YamlFile, model: type[BaseModel], detail: ErrorDetails) -> tuple[str, str]:
    """Where a mistake is and what it is."""
    at = _in_file(file.data, detail["loc"])
    key = str(at[-1]) if at else ""
    if detail["type"] == "extra_forbidden":
        known = _known_keys(model, detail["loc"][:-1])
        return file.where(*at), f"unknown key {key!r}{nearest(key, known)}"
    if detail["type"] == "missing":
        return file.where(*at[:-1]), f"key {key!r} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "union_tag_invalid":
        tags = [tag.strip("'") for tag in detail["ctx"]["expected_tags"].split(", ")]
        message = f"unknown type {detail['ctx']['tag']!r}{nearest(detail['ctx']['tag'], tags)}"
    shown = ".".join(str(step) for step in at)
    return file.where(*at), f"{shown}: {message}" if shown else message


def _in_file(data: Any, location: Location) -> Location:
    """A pydantic location without the names of union members, which no file contains."""
    kept: list[str | int] = []
    for i, step in enumerate(location):
        inside = isinstance(data, dict) and step in data
        if inside or (isinstance(data, list) and isinstance(step, int) and step < len(data)):
            data = data[step]
            kept.append(step)
        elif i == len(location) - 1 and isinstance(data, dict):
            kept.append(step)
    return tuple(kept)


def _known_keys(model: Any, location: Location) -> list[str]:
    """The keys that may stand at a location."""
    for step in location:
        model = _step(model, step)
    return list(_fields(model))


def _fields(kind: Any) -> dict[str, Any]:
    if get_origin(kind) in (Union, UnionType):
        members = list(_members(kind))
        return _fields(members[0]) if len(members) == 1 else {}
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return {}
    return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}


def _step(kind: Any, step: str | int) -> Any:
    """The type one step further down."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _step(arguments[0], step)
    if origin in (Union, UnionType):
        return _member(list(_members(kind)), step)
    if arguments:
        return arguments[-1] if issubclass(origin, Mapping) else arguments[0]
    return _fields(kind).get(str(step))


def _members(kind: Any) -> Iterator[Any]:
    for member in get_args(kind):
        if get_origin(member) is Annotated:
            member = get_args(member)[0]
        if member is not NoneType:
            yield member


def _member(members: Sequence[Any], step: str | int) -> Any:
    """Of a union, the member a tag names; else what the only member holds under the key."""
    for member in members:
        for annotation in _fields(member).values():
            if get_origin(annotation) is Literal and step in get_args(annotation):
                return member
    return _step(members[0], step) if len(members) == 1 else None
