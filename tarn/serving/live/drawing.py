"""What is in the tiles of a live page now, as JSON that the page's script takes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from threading import Timer
from typing import Any

import duckdb

from tarn.errors import TarnError
from tarn.serving import pages
from tarn.serving.dashboards import Drawn, Rows, check_fields, figure, query, records, table
from tarn.serving.declarations import Exposure
from tarn.serving.formats import show
from tarn.serving.live.alerts import listed
from tarn.serving.live.declaration import Alerts, Live, LiveTile, Map
from tarn.serving.tiles import Chart, Figure, Table

LONGEST_QUERY = 20.0
"""Seconds after which a tile gives up, so that the others go on."""
_MOST_POINTS = 2000
_POINT = ("latitude", "longitude")
Data = Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """A live page and all it needs to be drawn."""

    exposure: Exposure
    run: Live
    queries: tuple[str, ...]
    """SQL of each tile; empty for one that has its own."""
    reads: frozenset[str]
    """`schema.table` of the sources behind it."""


def draw(page: Page, number: int, cursor: duckdb.DuckDBPyConnection) -> Data:
    """The content of one tile, or the reason why there is none."""
    tile = page.run.tiles[number]
    with _in_time(cursor):
        try:
            return _content(tile, page.queries[number], f"tile-{number}", cursor)
        except duckdb.InterruptException:
            return {"error": f"took longer than {LONGEST_QUERY:.0f} s"}
        except (TarnError, duckdb.Error, ValueError) as failure:
            return {"error": str(failure).partition("\n\nLINE ")[0].strip()}


@contextmanager
def _in_time(cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    timer = Timer(LONGEST_QUERY, cursor.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _content(tile: LiveTile, sql: str, place: str, cursor: duckdb.DuckDBPyConnection) -> Data:
    match tile:
        case Figure():
            return _html(figure(tile, query(cursor, sql), cursor), place)
        case Table():
            return _html(table(tile, query(cursor, sql)), place)
        case Chart():
            return _chart(tile, query(cursor, sql))
        case Map():
            return _map(tile, cursor)
        case Alerts():
            found = listed(tile, cursor)
            return {"html": pages.render("live_alerts.html.j2", alerts=found)}


def _html(drawn: Drawn, place: str) -> Data:
    return {"html": pages.render("live_tile.html.j2", drawn=drawn, heading=place)}


def _chart(tile: Chart, rows: Rows) -> Data:
    check_fields(tile, rows.columns)
    dates = [
        name
        for index, name in enumerate(rows.columns)
        if any(hasattr(row[index], "isoformat") for row in rows.rows)
    ]
    return {"rows": records(rows), "dates": dates}


def _map(tile: Map, cursor: duckdb.DuckDBPyConnection) -> Data:
    named = [name for name in (tile.label, tile.colour, tile.heading) if name]
    rows = _points(query(cursor, tile.sql), named)
    trails: dict[str, list[list[float]]] = {}
    for row in _points(query(cursor, tile.trail), [tile.label]) if tile.trail else ():
        trails.setdefault(show(row[tile.label]), []).append(_place(row))
    places = _points(query(cursor, tile.places), ["label"]) if tile.places else ()
    return {
        "points": [_point(tile, row) for row in rows],
        "trails": trails,
        "places": [{"label": show(row["label"]), "at": _place(row)} for row in places],
        "colours": tile.colours,
    }


def _points(rows: Rows, named: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that are somewhere."""
    for name in (*_POINT, *named):
        if name not in rows.columns:
            raise TarnError(f"no column {name!r} in the query", fix=f"it has {rows.columns}")
    found = [dict(zip(rows.columns, row, strict=True)) for row in rows.rows]
    found = [row for row in found if _is_on_earth(row)]
    if len(found) > _MOST_POINTS:
        raise TarnError(f"more than {_MOST_POINTS:,} points", fix="choose fewer in the sql")
    return found


def _is_on_earth(row: Mapping[str, Any]) -> bool:
    limits = zip(_POINT, (90, 180), strict=True)
    return all(row[name] is not None and abs(row[name]) <= most for name, most in limits)


def _place(row: Mapping[str, Any]) -> list[float]:
    return [round(float(row[name]), 6) for name in _POINT]


def _point(tile: Map, row: Mapping[str, Any]) -> Data:
    others = [name for name in row if name not in {*_POINT, tile.label, tile.heading}]
    return {
        "label": show(row[tile.label]),
        "at": _place(row),
        "colour": show(row[tile.colour]) if tile.colour else "",
        "heading": _number(row[tile.heading]) if tile.heading else None,
        "about": [f"{name.replace('_', ' ')}: {show(row[name])}" for name in others],
    }


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float | Decimal) and math.isfinite(value)
    return float(value) if is_number else None
