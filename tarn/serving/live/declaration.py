"""What a live page says of itself under `config.meta.run`."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from tarn.serving.tiles import PAGE, Chart, Figure, Place, Table
from tarn.strict_yaml import Spec, Time, duration


class Map(Place):
    """Points on a map that is drawn without tiles: a grid of degrees, a scale and fixed places."""

    kind: Literal["map"]
    sql: str
    """One row a point, with columns latitude and longitude in degrees, and those named below."""
    label: str
    """Column that names a point: the same name is the same point when it moves."""
    colour: str | None = None
    """Column by whose values points are coloured."""
    colours: Mapping[str, Literal["accent", "good", "bad", "warn", "muted"]] = {}
    """Colour of the theme by value; other values take those of a chart's categories."""
    heading: str | None = None
    """Column with degrees clockwise from north; the point becomes an arrow."""
    trail: str | None = None
    """SQL: where points have been, with the column named by label, latitude and longitude, the
    oldest first."""
    places: str | None = None
    """SQL: what stands still, with columns latitude, longitude and label."""
    height: Annotated[int, Field(ge=160, le=2000)] = 480
    """In pixels."""


class Alerts(Place):
    """What alerts found: those open, then those resolved lately."""

    kind: Literal["alerts"]
    resolved_within: Time = "24h"
    """How long a resolved one stays."""


LiveTile: TypeAlias = Annotated[Figure | Chart | Table | Map | Alerts, Field(discriminator="kind")]


def _not_too_often(text: str) -> str:
    if duration(text) < timedelta(seconds=1):
        raise ValueError("a page is read anew once a second at most")
    return text


class Live(Spec):
    """A page that a server keeps up to date, read from streams as they are now."""

    kind: Literal["live"]
    page: Annotated[str, Field(pattern=PAGE)]
    """Last part of its address."""
    title: str
    subtitle: str | None = None
    refresh: Annotated[Time, AfterValidator(_not_too_often)] = "2s"
    """How often its tiles are read anew, while somebody looks."""
    stale_after: Time = "1m"
    """A stream with no commit for so long is told to be behind."""
    tiles: Annotated[tuple[LiveTile, ...], Field(min_length=1)]
