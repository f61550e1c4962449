"""The site of the built project: whole, standing alone, and true to the tables behind it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import duckdb
import polars as pl
import pytest
from playwright.sync_api import Browser, Page

from tarn.errors import TarnError
from tarn.serving.metrics import MetricCompiler, Query, condition
from tests.engine.browser import DESKTOP, PHONE, chromium, opened
from tests.engine.conftest import run

DASHBOARD = "dashboards/sales.html"
PAGES = ("index.html", DASHBOARD, "dbt/index.html", "lineage/index.html", "loads.html")
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def site(built_project: Path) -> Path:
    return built_project / "site"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_disk_and_asks_for_nothing(
    site: Path, browser: Browser, name: str
) -> None:
    with opened(browser, site / name) as found:
        found.page.wait_for_timeout(1000)
        assert len(found.page.locator("body").inner_text()) > 100
        assert found.errors == []
        asked = {url for url in found.requests if not url.startswith(("data:", "blob:"))}
        assert asked == {(site / name).as_uri()}


@SIZES
@pytest.mark.parametrize("name", PAGES[:2])
def test_a_page_fits_the_screen(
    site: Path, browser: Browser, name: str, size: tuple[int, int]
) -> None:
    with opened(browser, site / name, size) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") <= size[0]


@SIZES
def test_every_chart_is_drawn(site: Path, browser: Browser, size: tuple[int, int]) -> None:
    with opened(browser, site / DASHBOARD, size) as found:
        charts = found.page.locator(".drawing").all()
        assert len(charts) >= 3
        for chart in charts:
            drawing = chart.locator("svg")
            box = drawing.bounding_box()
            assert box is not None
            assert box["width"] > 200
            assert box["height"] > 100
            assert drawing.locator("g[class*='role-mark'] path").count() > 0
            assert chart.locator("[aria-label]").first.get_attribute("aria-label")


def test_links_between_pages_lead_somewhere(site: Path, browser: Browser) -> None:
    for name in PAGES[:2]:
        with opened(browser, site / name) as found:
            hrefs = found.page.eval_on_selector_all("a", "links => links.map(a => a.href)")
        assert hrefs
        for href in hrefs:
            assert Path(href.removeprefix("file://").partition("#")[0]).is_file(), href


def test_a_source_of_a_dashboard_is_found_in_the_documentation(
    site: Path, browser: Browser
) -> None:
    with opened(browser, site / DASHBOARD) as found:
        source = found.page.locator(".colophon a").first
        name = source.inner_text()
        source.click()
        found.page.wait_for_selector(f"h1:has-text('{name}')")


@pytest.fixture(scope="module")
def marts(built_project: Path) -> Callable[[str], pl.DataFrame]:
    """The Delta tables of `marts`, read by an engine that took no part in building them."""
    return lambda name: pl.read_delta(str(built_project / "lake/marts" / name))


def test_headline_figures_are_those_of_the_marts(
    site: Path, browser: Browser, marts: Callable[[str], pl.DataFrame]
) -> None:
    month = pl.col("sold_date").dt.truncate("1mo")
    by_month = (
        marts("fct_baskets")
        .group_by(month)
        .agg(
            pl.len().alias("baskets"),
            pl.col("household_id").n_unique().alias("households"),
        )
        .join(marts("fct_sales").group_by(month).agg(pl.col("sales_amount").sum()), on="sold_date")
        .sort("sold_date")
    )
    before, now = by_month.tail(2).to_dicts()
    rates = redemption_rates(marts)
    with opened(browser, site / DASHBOARD) as found:
        assert figure(found.page, "Sales") == (
            f"${now['sales_amount']:,.0f}",
            f"{now['sales_amount'] / before['sales_amount'] - 1:+.1%}",
        )
        assert figure(found.page, "Baskets")[0] == f"{now['baskets']:,}"
        average = now["sales_amount"] / now["baskets"]
        assert figure(found.page, "Average basket")[0] == f"${average:,.2f}"
        households = figure(found.page, "Active households")
        assert households[0] == f"{now['households']:,}"
        assert figure(found.page, "Coupon redemption rate") == (
            f"{rates[-1]:.1%}",
            f"{100 * (rates[-1] - rates[-2]):+.1f} pts".replace("-", "\N{MINUS SIGN}"),
        )


def figure(page: Page, title: str) -> tuple[str, str]:
    """A headline figure as its reader sees it, and its change without the arrow."""
    tile = page.locator(".figure").filter(has=page.get_by_role("heading", name=title, exact=True))
    change = re.search(r"\S+( pts)?$", tile.locator(".change b").inner_text())
    assert change is not None
    return tile.locator(".value").inner_text(), change[0]


def redemption_rates(marts: Callable[[str], pl.DataFrame]) -> list[float]:
    """Share of contacts whose household used a coupon of the campaign, by quarter of its start."""
    contact = ["campaign_id", "household_id"]
    used = marts("fct_coupon_redemptions").select(contact).unique()
    return (
        marts("fct_campaign_contacts")
        .join(used.with_columns(used=pl.lit(1)), on=contact, how="left")
        .join(marts("dim_campaign").select("campaign_id", "start_date"), on="campaign_id")
        .group_by(pl.col("start_date").dt.truncate("1q"))
        .agg(pl.col("used").count() / pl.len())
        .sort("start_date")["used"]
        .to_list()
    )


def test_the_weekly_chart_adds_up_to_the_sales_of_its_weeks(
    site: Path, marts: Callable[[str], pl.DataFrame]
) -> None:
    page = (site / DASHBOARD).read_text()
    found = re.findall(r'<script type="application/json" id="spec-\d+">(.*?)</script>', page)
    weekly = next(spec for spec in map(json.loads, found) if spec["description"].startswith("Week"))
    rows = pl.DataFrame(weekly["data"]["values"]).with_columns(pl.col("week").str.slice(0, 10))
    drawn = rows.group_by("week").agg(pl.col("sales").sum().round(2)).sort("week")
    week = pl.col("sold_date").dt.truncate("1w").cast(pl.String).alias("week")
    sold = marts("fct_sales").group_by(week).agg(pl.col("sales_amount").sum().cast(pl.Float64))
    matched = drawn.join(sold, on="week")
    assert len(matched) == len(drawn) >= 50
    assert matched["sales"].to_list() == matched["sales_amount"].round(2).to_list()


@pytest.fixture(scope="module")
def metrics(built_project: Path) -> MetricCompiler:
    return MetricCompiler(built_project / "target/semantic_manifest.json")


def test_a_metric_is_cut_and_restricted_as_its_tile_says(
    built_project: Path, metrics: MetricCompiler, marts: Callable[[str], pl.DataFrame]
) -> None:
    query = Query("baskets", ("store__store_format",), (condition("store__store_format", "it's"),))
    with duckdb.connect(str(built_project / "lake/catalog.duckdb"), read_only=True) as catalog:
        assert catalog.execute(metrics.sql(query)).fetchall() == []
        kept = ("large", "small")
        query = Query(query.metric, query.group_by, (condition("store__store_format", kept),))
        found = catalog.execute(metrics.sql(query)).fetchall()
    expected = (
        marts("fct_baskets")
        .join(marts("dim_store"), on="store_key")
        .group_by("store_format")
        .len()
        .filter(pl.col("store_format").is_in(kept))
        .sort("store_format")
    )
    assert found == expected.rows()
    assert len(found) == 2


@pytest.mark.parametrize(
    ("query", "what", "fix"),
    [
        (Query("total_sale"), "no metric 'total_sale'", "'total_sales'"),
        (Query("baskets", ("store__colour",)), "cannot be cut by store__colour", "store_format"),
        (
            Query("baskets", (), (condition("store__colour", "red"),)),
            "cannot be cut by",
            "store_format",
        ),
    ],
)
def test_a_metric_that_does_not_compile_says_what_would(
    metrics: MetricCompiler, query: Query, what: str, fix: str
) -> None:
    with pytest.raises(TarnError) as error:
        metrics.sql(query)
    assert what in error.value.what
    assert fix in str(error.value.fix)


def test_all_pages_name_the_release_they_show(
    site: Path, browser: Browser, built_project: Path
) -> None:
    number = max(int(file.stem) for file in (built_project / "lake/_tarn/releases").glob("*.json"))
    for name in PAGES[:2]:
        with opened(browser, site / name) as found:
            stamp = found.page.locator(".stamp div").filter(has_text="Release").locator("dd")
            assert stamp.inner_text() == str(number)


def test_lineage_follows_every_column_of_marts_and_outputs(site: Path) -> None:
    lineage = json.loads((site / "lineage/colibri-manifest.json").read_text())
    followed = {(edge["target"], edge["targetColumn"]) for edge in lineage["lineage"]["edges"]}
    models = {
        name: node["columns"]
        for name, node in lineage["nodes"].items()
        if node["schema"] in ("marts", "outputs") and node["nodeType"] == "model"
    }
    assert len(models) >= 15
    assert [name for name in models if not any(name == target for target, _ in followed)] == []
    # Made of nothing but the columns of one other model, so each comes from somewhere.
    sales = models["model.tarn.fct_sales"]
    assert {("model.tarn.fct_sales", column) for column in sales} <= followed
    assert not (site / "lineage/colibri-parsing-errors.json").exists()


def test_figures_and_tables_need_no_script(site: Path, browser: Browser) -> None:
    with opened(browser, site / DASHBOARD, java_script_enabled=False) as found:
        assert all(text.strip() for text in found.page.locator(".value").all_inner_texts())
        assert found.page.locator("tbody tr").count() > 0


def test_a_failing_tile_leaves_the_site_as_it_was(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    pages = [own_project / "site" / name for name in PAGES]
    before = [page.read_bytes() for page in pages]
    exposure = own_project / "models/exposures/sales_dashboard.yml"
    exposure.write_text(exposure.read_text().replace("marts.fct_baskets", "marts.fct_bskets"))
    done = run(own_project, project_env, "tarn", "docs")
    assert done.returncode == 1
    assert "models/exposures/sales_dashboard.yml: sales_dashboard: tile '" in done.stderr
    assert "fct_bskets" in done.stderr
    assert "Traceback" not in done.stderr
    assert [page.read_bytes() for page in pages] == before
    assert not list(own_project.glob("target/tmp*"))
