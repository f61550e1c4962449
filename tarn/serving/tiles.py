"""The tiles that dashboards and live pages have in common."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from tarn.serving.formats import check_format
from tarn.strict_yaml import Spec

Format = Annotated[str, AfterValidator(check_format)]
Width = Annotated[int, Field(ge=1, le=12)]


PAGE = r"^[a-z0-9][a-z0-9_-]*$"
"""What a page may be called: a part of a file's name or of an address."""


class Compare(Spec):
    """What a figure is held against, as a change."""

    label: str
    sql: str | None = None
    """Gives one value. Without it the figure's row before the last is taken."""
    better: Literal["higher", "lower", "neither"] = "higher"


class Place(Spec):
    """A titled place on a page."""

    title: str
    width: Width = 12
    """In twelfths of the page; a narrow screen stacks the tiles."""
    note: str | None = None


class _Tile(Place):
    """A place and the query behind it: SQL, or a metric cut by dimensions."""

    sql: str | None = None
    metric: str | None = None
    group_by: tuple[str, ...] = ()
    where: Mapping[str, str | int | bool | tuple[str | int, ...]] = {}
    """Dimensions of the metric and the value, or one of the values, that each must have."""

    @model_validator(mode="after")
    def _one_query(self) -> "_Tile":
        if (self.sql is None) == (self.metric is None):
            raise ValueError("give either sql or metric")
        if self.sql is not None and (self.group_by or self.where):
            raise ValueError("group_by and where belong to a metric; with sql, write them in SQL")
        return self


class Figure(_Tile):
    """A headline number: the last column of the last row. Rows before it are its trend."""

    kind: Literal["figure"]
    width: Width = 3
    format: Format | None = None
    compare: Compare | None = None


class Chart(_Tile):
    """A drawing of all rows by a Vega-Lite spec, which is given the data, size and theme."""

    kind: Literal["chart"]
    spec: dict[str, Any]

    @model_validator(mode="after")
    def _stands_alone(self) -> "Chart":
        if "data" in self.spec:
            raise ValueError("spec holds data; the tile's sql or metric is the data")
        if _holds(self.spec, "url"):
            raise ValueError("spec reads a url; a page asks nothing of other places")
        return self


def _holds(node: Any, key: str) -> bool:
    if isinstance(node, Mapping):
        return key in node or any(_holds(child, key) for child in node.values())
    return isinstance(node, list | tuple) and any(_holds(child, key) for child in node)


class Table(_Tile):
    """All rows as they come; column aliases are the headings."""

    kind: Literal["table"]
    format: Mapping[str, Format] = {}
    """By column."""


Tile: TypeAlias = Annotated[Figure | Chart | Table, Field(discriminator="kind")]
