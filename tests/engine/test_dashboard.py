"""Dashboards from a small catalog: what is refused, what is drawn, and that nothing slips out."""

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from playwright.sync_api import Browser, expect

from tarn.errors import TarnError
from tarn.serving.declarations import KINDS, read_exposures
from tarn.serving.formats import NOTHING, check_format, show
from tarn.serving.site import write_pages
from tests.engine.browser import chromium, opened

MINUS = "\N{MINUS SIGN}"
HOSTILE = "</script><img src=x onerror=alert(1)>'\"&<!--"
FIGURE: dict[str, Any] = {
    "title": "Height",
    "kind": "figure",
    "sql": "select max(metres) from marts.peaks",
}
CHART: dict[str, Any] = {
    "title": "Peaks",
    "kind": "chart",
    "sql": "select name, metres, climbed from marts.peaks",
    "spec": {"mark": "bar", "encoding": {"x": {"field": "metres", "type": "quantitative"}}},
}
TABLE: dict[str, Any] = {
    "title": "List",
    "kind": "table",
    "sql": "select * from marts.peaks order by name",
}


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A catalog of one release with one table, as `tarn.storage.catalog` makes them."""
    with duckdb.connect() as made:
        made.execute("create schema marts; create schema tarn")
        made.execute(
            "create table marts.peaks (name varchar, metres decimal(18,2), climbed date);"
            " insert into marts.peaks values ('Sorrel', 1204.10, '2024-06-30'),"
            " ('Ash', 987.25, '2024-01-01'), (null, null, null);"
            "create table tarn.catalog as select 7 as number,"
            " timestamp '2026-01-02 03:04:05' as made_at;"
            "create table tarn.release as select 'marts' as schema_name,"
            " 'peaks' as table_name, 3 as row_count"
        )
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


def declare(project: Path, *tiles: Mapping[str, Any], **run: Any) -> dict[str, Any]:
    """Write an exposure file with these tiles, and give the manifest that dbt would make of it."""
    run = {"kind": "dashboard", "page": "peaks", "title": "Peaks", "tiles": list(tiles), **run}
    file = "models/exposures/peaks.yml"
    exposure = {"name": "peaks", "type": "dashboard", "config": {"meta": {"run": run}}}
    (project / file).parent.mkdir(parents=True, exist_ok=True)
    (project / file).write_text(yaml.safe_dump({"exposures": [exposure]}, sort_keys=False))
    node = {
        **deepcopy(exposure),
        "unique_id": "exposure.hills.peaks",
        "original_file_path": file,
        "depends_on": {"nodes": ["model.hills.peaks"]},
    }
    return {
        "metadata": {"project_name": "hills"},
        "nodes": {},
        "sources": {},
        "exposures": {node["unique_id"]: node},
    }


def write(project: Path, manifest: Mapping[str, Any], connection: duckdb.DuckDBPyConnection) -> str:
    """Write the site's pages and give the dashboard's."""
    (project / "target").mkdir(exist_ok=True)
    (project / "target/manifest.json").write_text(json.dumps(manifest))
    write_pages(project / "site", project, project / "target", connection)
    return (project / "site/dashboards/peaks.html").read_text()


def drawn_specs(page: str) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json" id="spec-\d+">(.*?)</script>', page)
    return [json.loads(text) for text in found]


@pytest.mark.parametrize(
    ("tile", "what", "line"),
    [
        ({**FIGURE, "widht": 3}, "unknown key 'widht'; did you mean 'width'?", "widht: 3"),
        (
            {**FIGURE, "compare": {"label": "x", "beter": "lower"}},
            "unknown key 'beter'; did you mean 'better'?",
            "beter: lower",
        ),
        ({**FIGURE, "kind": "gauge"}, "known: figure, chart, table", "- title: Height"),
        ({**FIGURE, "width": 13}, "width: Input should be less than or equal to 12", "width: 13"),
        ({**FIGURE, "metric": "height"}, "give either sql or metric", "- title: Height"),
        ({**FIGURE, "where": {"peak__range": "north"}}, "belong to a metric", "- title: Height"),
        ({**FIGURE, "format": "lots"}, "'lots' is not a format", "format: lots"),
        ({**TABLE, "format": {"metres": "lots"}}, "'lots' is not a format", "metres: lots"),
        ({**FIGURE, "kind": "chart"}, "key 'spec' is missing", "- title: Height"),
        ({**CHART, "spec": {"data": {"values": []}}}, "spec holds data", "- title: Peaks"),
        (
            {**CHART, "spec": {"layer": [{"data": {"url": "//h/x"}}]}},
            "spec reads a url",
            "- title: Peaks",
        ),
    ],
)
def test_a_wrong_tile_is_named_with_its_file_line_and_title(
    tmp_path: Path, tile: dict[str, Any], what: str, line: str
) -> None:
    with pytest.raises(TarnError) as error:
        read_exposures(declare(tmp_path, TABLE, tile), tmp_path)
    assert what in error.value.what
    file, number, name, title = str(error.value.where).split(":")
    assert (name, title) == (" peaks", f" tile {tile['title']!r}")
    assert (tmp_path / file).read_text().splitlines()[int(number) - 1].strip() == line


def test_an_unknown_key_of_the_page_names_its_line(tmp_path: Path) -> None:
    expected = r"peaks\.yml:\d+: peaks: unknown key 'subtitel'; did you mean 'subtitle'"
    with pytest.raises(TarnError, match=expected):
        read_exposures(declare(tmp_path, TABLE, subtitel="x"), tmp_path)


def test_an_unknown_kind_of_run_lists_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(TarnError, match="unknown kind of run 'dashbord'") as error:
        read_exposures(declare(tmp_path, TABLE, kind="dashbord"), tmp_path)
    assert all(kind in str(error.value.fix) for kind in KINDS)


def test_kinds_of_other_parts_keep_their_own_keys(tmp_path: Path) -> None:
    manifest = declare(tmp_path)
    manifest["exposures"]["exposure.hills.peaks"]["config"]["meta"]["run"] = {
        "kind": "sync",
        "destination": "post office",
    }
    [exposure] = read_exposures(manifest, tmp_path)
    assert exposure.run is not None
    assert exposure.run.kind == "sync"


def test_two_dashboards_cannot_share_a_page(tmp_path: Path) -> None:
    manifest = declare(tmp_path, TABLE)
    [node] = manifest["exposures"].values()
    manifest["exposures"]["exposure.hills.tops"] = {**node, "name": "tops"}
    with pytest.raises(TarnError, match="page 'peaks' is also declared by peaks"):
        read_exposures(manifest, tmp_path)


@pytest.mark.parametrize(
    ("tile", "what"),
    [
        ({**TABLE, "sql": "select * from range(50001)"}, "more than 50,000 rows"),
        ({**TABLE, "sql": "drop table marts.peaks"}, "sql must be one select"),
        ({**TABLE, "sql": "select 1; select 2"}, "sql must be one select"),
        ({**TABLE, "sql": "select * from marts.peeks"}, "peeks does not exist"),
        ({**TABLE, "sql": "select 1 as a, 2 as a"}, "two columns are named 'a'"),
        ({**TABLE, "format": {"meters": ",.0f"}}, "did you mean 'metres'"),
        ({**FIGURE, "sql": "select 1 where false"}, "no row"),
        ({**FIGURE, "compare": {"label": "x"}}, "compare needs a row before the last"),
        (
            {**FIGURE, "compare": {"label": "x", "sql": "select 1, 2"}},
            "not one row with one value",
        ),
        (
            {**CHART, "spec": {"mark": "bar", "encoding": {"x": {"field": "metrs"}}}},
            "did you mean 'metres'",
        ),
        ({**CHART, "spec": {**CHART["spec"], "mark": "barr"}}, "the spec cannot be drawn"),
    ],
)
def test_a_failing_tile_is_one_error_that_names_it(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection, tile: dict[str, Any], what: str
) -> None:
    with pytest.raises(TarnError) as error:
        write(tmp_path, declare(tmp_path, TABLE, tile), connection)
    assert error.value.where == f"models/exposures/peaks.yml: peaks: tile {tile['title']!r}"
    assert what in str(error.value)
    assert connection.execute("select count(*) from marts.peaks").fetchone() == (3,)


def test_fifty_thousand_rows_are_still_drawn(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    tile = {**TABLE, "sql": "select * from range(50000)"}
    page = write(tmp_path, declare(tmp_path, tile), connection)
    assert page.count("<tr>") == 50_001


def test_hostile_text_stays_text(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("insert into marts.peaks values (?, 1, null)", [HOSTILE])
    tiles = [{**tile, "title": HOSTILE, "note": HOSTILE} for tile in (FIGURE, CHART, TABLE)]
    manifest = declare(tmp_path, *tiles, title=HOSTILE, subtitle=HOSTILE)
    manifest["metadata"]["project_name"] = HOSTILE
    page = write(tmp_path, manifest, connection)
    landing = (tmp_path / "site/index.html").read_text()
    assert "<img src=x" not in page + landing
    assert "<!--" not in page + landing
    assert HOSTILE in [row["name"] for row in drawn_specs(page)[0]["data"]["values"]]


def test_hostile_text_runs_nowhere_in_a_browser(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection, browser: Browser
) -> None:
    connection.execute("update marts.peaks set name = ?", [HOSTILE])
    by_name = {"y": {"field": "name", "type": "nominal"}, **CHART["spec"]["encoding"]}
    chart = {**CHART, "title": HOSTILE, "spec": {**CHART["spec"], "encoding": by_name}}
    write(tmp_path, declare(tmp_path, {**TABLE, "title": HOSTILE}, chart), connection)
    with opened(browser, tmp_path / "site/dashboards/peaks.html") as found:
        found.page.locator(".drawing .mark-rect path").first.hover()
        found.page.wait_for_selector(".vg-tooltip.visible")
        assert found.page.locator("img").count() == 0
        assert found.page.locator("td.text").first.inner_text() == HOSTILE
        assert found.errors == []
        assert len(found.requests) == 1


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "UTC", "Pacific/Auckland"])
def test_a_date_is_the_same_day_for_every_reader(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection, browser: Browser, zone: str
) -> None:
    text = {"field": "climbed", "type": "temporal", "format": "%-d %b %Y"}
    spec = {"mark": "text", "encoding": {"text": text}}
    tile = {**CHART, "sql": "select climbed from marts.peaks where name = 'Ash'", "spec": spec}
    write(tmp_path, declare(tmp_path, tile), connection)
    with opened(browser, tmp_path / "site/dashboards/peaks.html", timezone_id=zone) as found:
        assert found.page.locator(".drawing .mark-text text").text_content() == "1 Jan 2024"


def test_charts_follow_the_colours_a_reader_asks_for_and_print_in_light(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection, browser: Browser
) -> None:
    write(tmp_path, declare(tmp_path, CHART), connection)
    with opened(browser, tmp_path / "site/dashboards/peaks.html", color_scheme="light") as found:
        drawing = found.page.locator(".drawing svg")
        bar = drawing.locator(".mark-rect path").first
        light = str(bar.get_attribute("fill"))
        expect(drawing).to_have_css("filter", "none")
        found.page.emulate_media(color_scheme="dark")
        expect(bar).not_to_have_attribute("fill", light)
        expect(found.page.locator("body")).to_have_css("background-color", "rgb(14, 22, 27)")
        found.page.emulate_media(color_scheme="dark", media="print")
        expect(found.page.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
        expect(drawing).not_to_have_css("filter", "none")


def test_a_chart_gets_values_a_browser_reads_alike_everywhere(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    sql = (
        "select name, metres, climbed, 9007199254740993 as big, 'nan'::double as odd"
        " from marts.peaks where name = 'Ash'"
    )
    [spec] = drawn_specs(write(tmp_path, declare(tmp_path, {**CHART, "sql": sql}), connection))
    assert spec["data"]["values"] == [
        {
            "name": "Ash",
            "metres": 987.25,
            "climbed": "2024-01-01T00:00:00",
            "big": "9007199254740993",
            "odd": None,
        }
    ]
    assert spec["description"] == "Peaks"


def test_the_same_release_gives_the_same_bytes(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    manifest = declare(tmp_path, FIGURE, CHART, TABLE, as_of="select max(climbed) from marts.peaks")
    first = write(tmp_path, manifest, connection)
    assert write(tmp_path, manifest, connection) == first
    assert "30 Jun 2024" in first


@pytest.mark.parametrize(
    ("sql", "form", "better", "change", "verdict"),
    [
        ("select * from (values (1, 80), (2, 100))", None, "higher", "+25.0%", "good"),
        ("select * from (values (1, 80), (2, 100))", None, "lower", "+25.0%", "bad"),
        ("select * from (values (1, 100), (2, 80))", None, "lower", MINUS + "20.0%", "good"),
        (
            "select * from (values (1, 100), (2, 80))",
            None,
            "neither",
            "\N{MINUS SIGN}20.0%",
            "neither",
        ),
        ("select * from (values (1, 0.10), (2, 0.125))", ".1%", "higher", "+2.5 pts", "good"),
        ("select * from (values (1, 5), (2, 5))", None, "higher", "0.0%", "neither"),
    ],
)
def test_a_figure_is_the_last_row_held_against_the_one_before(
    tmp_path: Path,
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    form: str | None,
    better: str,
    change: str,
    verdict: str,
) -> None:
    compare = {"label": "on the day before", "better": better}
    tile = {**FIGURE, "sql": sql, "format": form, "compare": compare}
    page = write(tmp_path, declare(tmp_path, tile), connection)
    shown = re.search(r'<p class="change"><b class="(\w+)">\W? ?(.*?)</b> (.*?)</p>', page)
    assert shown is not None
    assert shown.groups() == (verdict, change, "on the day before")


def test_a_change_from_nothing_is_not_shown(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    tile = {**FIGURE, "sql": "select unnest([0, 5])", "compare": {"label": "before"}}
    page = write(tmp_path, declare(tmp_path, tile), connection)
    assert '<p class="value">5</p>' in page
    assert 'class="change"' not in page


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (Decimal("4596039.58"), "$,.0f", "$4,596,040"),
        (Decimal("4596039.58"), "$.3s", "$4.60M"),
        (Decimal("4596039.58"), None, "4,596,039.58"),
        (Decimal("2.5"), ".0f", "3"),
        (Decimal("-5.5"), "$,.2f", MINUS + "$5.50"),
        (Decimal("-0.001"), ".1f", "0.0"),
        (Decimal("12345678901234567890123456789012.125"), ",.2f", None),
        (12345678901234567890123456789012345678, None, None),
        (0.1 + 0.2, None, "0.3"),
        (0.0123, "+.1%", "+1.2%"),
        (999_999, ".3s", "1.00M"),
        (1500, ".3~s", "1.5k"),
        (0, ".1%", "0.0%"),
        (float("nan"), ",", NOTHING),
        (None, "$,.0f", NOTHING),
        (True, None, "yes"),
        (date(2017, 3, 5), None, "5 Mar 2017"),
        (date(2017, 3, 5), "%d %b", "05 Mar"),
        (datetime(2017, 3, 5, 4, 7), None, "5 Mar 2017 04:07"),
        ("$5", "$,.0f", "$5"),
    ],
)
def test_values_are_shown_exactly(value: Any, form: str | None, text: str | None) -> None:
    if text is None:
        digits = str(value).replace(".125", ".13")
        assert show(value, form).replace(",", "") == digits
    else:
        assert show(value, form) == text


@pytest.mark.parametrize("form", ["", ",", "$,.2f", "+.1%", "%", ".3~s", "%d %b %Y", "%-d %b"])
def test_formats_that_are_understood(form: str) -> None:
    assert check_format(form) == form


@pytest.mark.parametrize("form", ["0,0", "€,.0f", ".f", "%%", "#,##0"])
def test_formats_that_are_not(form: str) -> None:
    with pytest.raises(ValueError, match="is not a format"):
        check_format(form)
