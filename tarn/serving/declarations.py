"""What a project's exposures declare under `config.meta.run`, read from dbt's manifest.

A dashboard's tiles are validated here, before anything is queried: an unknown key is an error
that names the file, the line, the tile and the nearest key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from tarn.errors import TarnError
from tarn.serving.alerts.declaration import (
    Alert,
    BusinessHours,
    Deviation,
    Email,
    Heartbeat,
    Webhook,
)
from tarn.serving.live.declaration import Alerts, Live, Map
from tarn.serving.tiles import PAGE, Chart, Compare, Figure, Table, Tile
from tarn.strict_yaml import Location, Spec, YamlFile, nearest, read

_OtherKind = Literal["api", "features", "training_set", "sync"]
KINDS = ("dashboard", "live", "alert", *get_args(_OtherKind), "docs")


class Dashboard(Spec):
    """One page."""

    kind: Literal["dashboard"]
    page: Annotated[str, Field(pattern=PAGE)]
    """Name of the file, without .html."""
    title: str
    subtitle: str | None = None
    as_of: str | None = None
    """SQL that gives the last moment the page's data knows of."""
    tiles: Annotated[tuple[Tile, ...], Field(min_length=1)]


class Docs(Spec):
    """The documentation site itself."""

    kind: Literal["docs"]


class Other(BaseModel):
    """An output that another part of the engine runs; its keys are checked there."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: _OtherKind


Run: TypeAlias = Dashboard | Live | Docs | Alert | Other
_AnyRun = Annotated[Run, Field(discriminator="kind")]
_SHAPES: Mapping[str, type[Spec]] = {
    "dashboard": Dashboard,
    "live": Live,
    "docs": Docs,
    "figure": Figure,
    "chart": Chart,
    "table": Table,
    "map": Map,
    "alerts": Alerts,
    "compare": Compare,
    "alert": Alert,
    "deviation": Deviation,
    "business_hours": BusinessHours,
    "heartbeat": Heartbeat,
    "webhook": Webhook,
    "email": Email,
}
"""The models by the name under which pydantic reports a place in them."""
_TILE_KINDS: tuple[str, ...] = ("figure", "chart", "table")
_LIVE_TILE_KINDS = (*_TILE_KINDS, "map", "alerts")
_CHANNEL_KINDS: tuple[str, ...] = ("webhook", "email")
_TAGS = (*KINDS, *_LIVE_TILE_KINDS, *_CHANNEL_KINDS)
"""Parts of such a place that stand for a choice of model, not for a key."""


@dataclass(frozen=True)
class Exposure:
    """One exposure of the project: an output, who answers for it and how it runs."""

    name: str
    unique_id: str
    type: str
    """dbt's word: dashboard, application, ml, …"""
    title: str
    description: str
    owner: str
    file: str
    """Path from the project's folder."""
    depends_on: tuple[str, ...]
    """dbt's unique ids of the models and metrics behind it."""
    run: Run | None


def read_exposures(manifest: Mapping[str, Any], project: Path) -> list[Exposure]:
    """All exposures of a dbt manifest, by name. Files below `project` are read for line numbers."""
    nodes = sorted(manifest["exposures"].values(), key=lambda node: str(node["name"]))
    exposures = [_read_exposure(node, project) for node in nodes]
    pages: dict[tuple[str, str], Exposure] = {}
    for exposure in exposures:
        if isinstance(exposure.run, Dashboard | Live):
            other = pages.setdefault((exposure.run.kind, exposure.run.page), exposure)
            if other is not exposure:
                raise TarnError(
                    f"page {exposure.run.page!r} is also declared by {other.name} in {other.file}",
                    f"{exposure.file}: {exposure.name}",
                    "give one of the two another page",
                )
    return exposures


def _read_exposure(node: Mapping[str, Any], project: Path) -> Exposure:
    declared = {**node.get("meta", {}), **node["config"].get("meta", {})}.get("run")
    name, file = str(node["name"]), str(node["original_file_path"])
    title = node.get("label") or name.replace("_", " ").capitalize()
    run = None if declared is None else parse_run(declared, name, _source(project, file, name))
    owner = node.get("owner") or {}
    return Exposure(
        name=name,
        unique_id=str(node["unique_id"]),
        type=str(node["type"]),
        title=run.title if isinstance(run, Dashboard | Live) else title,
        description=str(node.get("description") or ""),
        owner=str(owner.get("name") or owner.get("email") or ""),
        file=file,
        depends_on=tuple(node["depends_on"]["nodes"]),
        run=run,
    )


def parse_run(declared: Any, name: str, source: YamlFile) -> Run:
    """The `run` of the exposure `name`; `source` tells the line of each key of it."""
    kind = declared.get("kind") if isinstance(declared, Mapping) else None
    if kind not in KINDS:
        where = f"{source.where('kind')}: {name}"
        raise TarnError(f"unknown kind of run {kind!r}", where, f"one of {', '.join(KINDS)}")
    try:
        run: Run = TypeAdapter(_AnyRun).validate_python(declared)
    except ValidationError as error:
        raise _explain(error, declared, name, source) from None
    return run


def _source(project: Path, file: str, name: str) -> YamlFile:
    """The `run` of an exposure as if it were a file of its own, with the lines of its real one."""
    whole = read(project / file, file)
    lines: dict[Location, int] = {}
    for index, exposure in enumerate(whole.data["exposures"]):
        for between in (("meta",), ("config", "meta")) if exposure["name"] == name else ():
            at = ("exposures", index, *between, "run")
            below = (key for key in whole.lines if key[: len(at)] == at)
            lines.update({key[len(at) :]: whole.lines[key] for key in below})
    return YamlFile(file, None, lines)


def _explain(
    error: ValidationError, declared: Mapping[str, Any], name: str, source: YamlFile
) -> TarnError:
    """The first thing wrong, in the words of someone who wrote the YAML."""
    first = error.errors(include_url=False)[0]
    keys = tuple(key for key in first["loc"] if key not in _TAGS)
    where = f"{source.where(*keys)}: {name}{_tile_title(declared, keys)}"
    match first["type"]:
        case "extra_forbidden":
            shape = _SHAPES[[str(part) for part in first["loc"][:-1] if part in _SHAPES][-1]]
            what = f"unknown key {keys[-1]!r}{nearest(str(keys[-1]), _keys(shape))}"
        case "missing":
            what = f"key {keys[-1]!r} is missing"
        case "union_tag_invalid" | "union_tag_not_found":
            thing, known = "tile", _LIVE_TILE_KINDS if declared["kind"] == "live" else _TILE_KINDS
            if "notify" in keys:
                thing, known = "channel", _CHANNEL_KINDS
            what = f"unknown kind of {thing}; known: {', '.join(known)}"
        case _:
            place = ".".join(str(key) for key in keys if not isinstance(key, int))
            what = ": ".join(filter(None, (place, first["msg"].removeprefix("Value error, "))))
    return TarnError(what, where)


def _keys(shape: type[Spec]) -> list[str]:
    return [field.alias or name for name, field in shape.model_fields.items()]


def _tile_title(declared: Mapping[str, Any], keys: Location) -> str:
    if len(keys) < 2 or keys[0] != "tiles":
        return ""
    tile = declared["tiles"][keys[1]]
    title = tile.get("title") if isinstance(tile, Mapping) else None
    return f": tile {title!r}" if title else f": tile {int(keys[1]) + 1}"
