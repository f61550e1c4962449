"""A dashboard exposure and a released catalog become one page that needs nothing else."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

import duckdb
import vl_convert

from tarn.errors import TarnError
from tarn.serving.declarations import Dashboard, Exposure
from tarn.serving.formats import show
from tarn.serving.tiles import Chart, Compare, Figure, Table, Tile

MOST_ROWS = 50_000
"""In one tile. More would be a page nobody can open, of marks nobody can tell apart."""
_NAMING = {"pivot", "fold", "lookup", "density", "quantile"}
"""Vega-Lite's transforms that make columns of names the spec does not show."""
_EXACT = 2**53
"""Integers up to here are exact in a browser."""


@dataclass(frozen=True)
class Rows:
    """What a query gave, in order."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True)
class Drawn:
    """A tile with its data, as the page template takes it."""

    tile: Figure | Chart | Table
    value: str = ""
    change: str = ""
    """The change as text, empty when there is nothing to compare with."""
    verdict: str = "neither"
    """good, bad or neither."""
    trend: str = ""
    """Points of the trend line in a box of 100 by 30, as SVG spells them."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    headings: list[str] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    """By column: number, date or text."""


def draw(
    exposure: Exposure,
    dashboard: Dashboard,
    connection: duckdb.DuckDBPyConnection,
    metric_sql: Callable[[Tile], str],
) -> list[Drawn]:
    """All tiles of a dashboard with their data. A tile that fails is named in the error."""
    drawn = []
    for tile in dashboard.tiles:
        with _named(f"{exposure.file}: {exposure.name}: tile {tile.title!r}"):
            drawn.append(_draw(tile, query(connection, tile.sql or metric_sql(tile)), connection))
    return drawn


def as_of(
    exposure: Exposure, dashboard: Dashboard, connection: duckdb.DuckDBPyConnection
) -> str | None:
    """The last moment that the dashboard's data knows of, if it says how to find it."""
    if dashboard.as_of is None:
        return None
    with _named(f"{exposure.file}: {exposure.name}: as_of"):
        return show(_one_value(connection, dashboard.as_of))


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Whatever a user can mend about a query, told with the place it is declared at."""
    try:
        yield
    except TarnError as error:
        raise TarnError(error.what, where, error.fix) from error
    except (duckdb.Error, ValueError) as error:
        raise TarnError(str(error).strip(), where) from error


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> Rows:
    """The rows of one SELECT, at most MOST_ROWS of them."""
    statements = duckdb.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise TarnError("sql must be one select")
    cursor = connection.execute(statements[0])
    columns = [str(column[0]) for column in cursor.description or ()]
    rows = cursor.fetchmany(MOST_ROWS + 1)
    if len(rows) > MOST_ROWS:
        raise TarnError(f"more than {MOST_ROWS:,} rows", fix="aggregate in the tile's sql")
    if doubled := sorted({name for name in columns if columns.count(name) > 1}):
        raise TarnError(f"two columns are named {doubled[0]!r}", fix="give one an alias")
    return Rows(columns, rows)


def _one_value(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """The value that a query of one row and one column gives."""
    rows = query(connection, sql).rows
    if len(rows) != 1 or len(rows[0]) != 1:
        raise TarnError(f"not one row with one value: {sql.strip()}")
    return rows[0][0]


def _draw(tile: Tile, rows: Rows, connection: duckdb.DuckDBPyConnection) -> Drawn:
    match tile:
        case Figure():
            return figure(tile, rows, connection)
        case Chart():
            return Drawn(tile, spec=_spec(tile, rows))
        case Table():
            return table(tile, rows)


def figure(tile: Figure, rows: Rows, connection: duckdb.DuckDBPyConnection) -> Drawn:
    """The number, its change and its trend."""
    if not rows.rows:
        raise TarnError("no row, so no figure")
    values = [row[-1] for row in rows.rows]
    change, verdict = "", "neither"
    if tile.compare is not None:
        before = _before(tile.compare, values, connection)
        change, verdict = _change(values[-1], before, tile.compare.better, tile.format or "")
    return Drawn(tile, show(values[-1], tile.format), change, verdict, trend_points(values))


def _before(compare: Compare, values: list[Any], connection: duckdb.DuckDBPyConnection) -> Any:
    if compare.sql is None:
        if len(values) < 2:
            raise TarnError("compare needs a row before the last, or an sql of its own")
        return values[-2]
    return _one_value(connection, compare.sql)


def _change(now: Any, before: Any, better: str, form: str) -> tuple[str, str]:
    """Change as text and as a verdict: in points for a percentage, else relative."""
    if now is None or before is None:
        return "", "neither"
    difference = Decimal(str(now)) - Decimal(str(before))
    if form.endswith("%"):
        text = f"{show(difference * 100, '+.1f')} pts"
    elif before:
        text = show(difference / abs(Decimal(str(before))), "+.1%")
    else:
        return "", "neither"
    if better == "neither" or not difference:
        return text, "neither"
    return text, "good" if (difference > 0) == (better == "higher") else "bad"


def trend_points(values: list[Any], width: int = 100, height: int = 30) -> str:
    """Points of a line through numbers, as SVG's polyline takes them; nothing for fewer than 3."""
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < 3:
        return ""
    low, high = min(numbers), max(numbers)
    step, scale = width / (len(numbers) - 1), height / ((high - low) or 1)
    points = (
        f"{index * step:.2f},{height - (value - low) * scale:.2f}"
        for index, value in enumerate(numbers)
    )
    return " ".join(points)


def table(tile: Table, rows: Rows) -> Drawn:
    """All cells as text."""
    for name in tile.format:
        _known(name, rows.columns, "format names")
    forms = [tile.format.get(name) for name in rows.columns]
    return Drawn(
        tile,
        headings=[heading(name) for name in rows.columns],
        cells=[
            [show(value, form) for value, form in zip(row, forms, strict=True)] for row in rows.rows
        ],
        looks=[_look(row[i] for row in rows.rows) for i in range(len(rows.columns))],
    )


def _look(values: Iterator[Any]) -> str:
    first = next((value for value in values if value is not None), None)
    if isinstance(first, int | float | Decimal) and not isinstance(first, bool):
        return "number"
    return "date" if isinstance(first, date) else "text"


def heading(column: str) -> str:
    """`order_total` as a heading: Order total. An alias with a capital or space is kept."""
    words = column.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _spec(tile: Chart, rows: Rows) -> dict[str, Any]:
    """The tile's spec with its data."""
    check_fields(tile, rows.columns)
    spec = {**framed(tile), "data": {"values": records(rows)}}
    _try_drawing(spec)
    return spec


def check_fields(tile: Chart, columns: list[str]) -> None:
    """Raise TarnError if the spec draws a field that is no column."""
    if not _NAMING & {key for node in _nodes(tile.spec) for key in node}:
        for name in _texts(tile.spec, "field"):
            known = [*columns, *_texts(tile.spec, "as")]
            _known(re.split(r"[.\[]", name)[0], known, "spec draws")


def framed(tile: Chart) -> dict[str, Any]:
    """The tile's spec, made to fill the tile and to be read aloud."""
    spec = dict(tile.spec)
    if not {"facet", "concat", "hconcat", "vconcat", "repeat"} & spec.keys():
        spec.setdefault("width", "container")
        spec.setdefault("autosize", {"type": "fit-x", "contains": "padding"})
    spec.setdefault("description", ". ".join(filter(None, (tile.title, tile.note))))
    return spec


def records(rows: Rows) -> list[dict[str, Any]]:
    """The rows as JSON takes them."""
    return [
        {name: _plain(value) for name, value in zip(rows.columns, row, strict=True)}
        for row in rows.rows
    ]


def _try_drawing(spec: dict[str, Any]) -> None:
    """Draw a chart once, so that a wrong spec fails here and not before its readers."""
    try:
        vl_convert.vegalite_to_svg(spec)
    except ValueError as error:
        said = str(error).splitlines()
        raise TarnError(f"the spec cannot be drawn: {said[min(1, len(said) - 1)]}") from None


def _known(name: str, columns: list[str], who: str) -> None:
    if name not in columns:
        close = get_close_matches(name, columns, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(columns))}"
        raise TarnError(f"{who} {name!r}, which is no column of the query", fix=fix)


def _nodes(spec: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping inside a spec, whatever holds it."""
    if isinstance(spec, Mapping):
        yield spec
    if isinstance(spec, Mapping | list | tuple):
        for child in spec.values() if isinstance(spec, Mapping) else spec:
            yield from _nodes(child)


def _texts(spec: Any, key: str) -> list[str]:
    """The texts that stand under `key` anywhere in a spec, listed ones included."""
    found = (node[key] for node in _nodes(spec) if key in node)
    listed = (value if isinstance(value, list | tuple) else [value] for value in found)
    return [text for texts in listed for text in texts if isinstance(text, str)]


def _plain(value: Any) -> Any:
    """A value as JSON that a browser reads as the same value.

    A date gets a time: without one a browser takes it for UTC and shows the day before in the
    west of it. Integers it cannot hold become text.
    """
    match value:
        case datetime():
            return value.isoformat()
        case date():
            return f"{value.isoformat()}T00:00:00"
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) <= _EXACT else str(value)
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return float(value)
        case timedelta():
            return value.total_seconds()
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
    return str(value)
