"""Live pages: what is refused, who is let in, and what a browser shows as events come."""

import asyncio
import re
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests  # type: ignore[import-untyped]
import yaml
from playwright.sync_api import Browser, Page, expect

from tarn.errors import TarnError
from tarn.serving.live import feed
from tarn.serving.live.drawing import Page as LivePage
from tests.engine.browser import DESKTOP, PHONE, Opened, chromium
from tests.engine.conftest import BIN
from tests.engine.live_pages import TILES, TOKEN, Shop, served
from tests.engine.test_dbt import Project

FIGURE, CHART, MAP, ALERTS, TABLE = TILES
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path)
    made.fill()
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@contextmanager
def looking(browser: Browser, url: str, size: tuple[int, int] = DESKTOP) -> Iterator[Opened]:
    """The page at an address, opened with its token."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    found = Opened(context.new_page())
    found.page.on("console", found.hear)
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(f"{url}/shop?token={TOKEN}")
    expect(found.page.locator("#state")).to_have_text("Live", timeout=20_000)
    yield found
    context.close()


def tile(page: Page, declared: Mapping[str, Any]) -> Any:
    heading = page.get_by_role("heading", name=declared["title"], exact=True)
    return page.locator(".tile").filter(has=heading)


@pytest.mark.parametrize(
    ("change", "what", "line"),
    [
        ({"refersh": "2s"}, "unknown key 'refersh'; did you mean 'refresh'?", "refersh"),
        ({"refresh": "500ms"}, "refresh: a page is read anew once a second at most", "refresh"),
        ({"refresh": "soon"}, "'soon' is no time such as 1s", "refresh"),
        ({"tiles": []}, "tiles: ", "tiles"),
        ({"tiles": [{**MAP, "color": "x"}]}, "did you mean 'colour'?", "color"),
        ({"tiles": [{**MAP, "colours": {"a": "red"}}]}, "colours.a: Input should be 'a", "a: red"),
        ({"tiles": [{**MAP, "kind": "globe"}]}, "known: figure, chart, table, map, alerts", "- t"),
        ({"tiles": [{**FIGURE, "metric": "sales"}]}, "give either sql or metric", "- title"),
        ({"page": "a/b"}, "page: ", "page"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, change: Mapping[str, Any], what: str, line: str
) -> None:
    with pytest.raises(TarnError) as caught:
        Shop(tmp_path).pages(**change)
    text = (tmp_path / "models/exposures/shop.yml").read_text().splitlines()
    number = next(i for i, each in enumerate(text, 1) if each.lstrip().startswith(line))
    assert what in str(caught.value)
    assert str(caught.value).startswith(f"models/exposures/shop.yml:{number}: shop")


def test_a_project_without_live_pages_says_so(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    manifest = {**shop.declare(), "exposures": {}}
    with pytest.raises(TarnError, match="no exposure of kind live"):
        shop.pages_of(manifest)


def test_nobody_comes_in_without_the_token(shop: Shop) -> None:
    with served(shop.pages(), shop.lake) as url:
        for path in ("/", "/shop", "/shop/events", "/assets/live.js", "/nothing", "/?token=wrong"):
            answer = requests.get(url + path, timeout=10)
            assert answer.status_code == 401
            assert "token" in answer.text
            assert TOKEN not in answer.text
        cookie = {"Cookie": "; ".join(f"{name}=wrong" for name in ("token", "tarn_live_07720476"))}
        assert requests.get(f"{url}/shop", headers=cookie, timeout=10).status_code == 401

        asked = requests.Session()
        come = asked.get(f"{url}/?token={TOKEN}", timeout=10)
        assert come.url == f"{url}/shop"
        assert "HttpOnly" in come.history[0].headers["set-cookie"]
        assert TOKEN not in come.text
        assert "script-src 'self'" in come.headers["content-security-policy"]
        assert asked.get(f"{url}/assets/../server.py", timeout=10).status_code == 404
        assert asked.get(f"{url}/nothing", timeout=10).status_code == 404


def test_the_page_follows_what_happens(shop: Shop, browser: Browser) -> None:
    with served(shop.pages(), shop.lake) as url, looking(browser, url) as seen:
        figure, couriers = tile(seen.page, FIGURE), tile(seen.page, MAP)
        expect(figure.locator(".value")).to_have_text("0")
        expect(tile(seen.page, ALERTS)).to_contain_text("No alert has been evaluated yet.")
        expect(tile(seen.page, CHART).locator("svg path").first).to_be_visible()
        courier = couriers.locator('.point[data-label="bike-3"]')
        before = courier.evaluate("mark => mark.style.transform")
        expect(couriers.locator(".legend")).to_have_text("deliveringreturning")
        returning = couriers.locator(".legend span").last
        assert "--muted" in (returning.get_attribute("style") or "")
        expect(couriers.locator(".place")).to_have_count(2)

        shop.sell(12)
        expect(figure.locator(".value")).to_have_text("12")
        expect(tile(seen.page, TABLE)).to_contain_text(f"S{shop.sold - 1}")
        shop.move("bike-3", 7, 3)
        expect(courier).not_to_have_attribute("style", re.compile(re.escape(before)))
        shop.alert("opened", 1)
        expect(tile(seen.page, ALERTS).locator(".alert.critical")).to_contain_text("3 expected")
        shop.alert("resolved", 2)
        expect(tile(seen.page, ALERTS).locator(".alert.resolved")).to_have_count(1)

        expect(seen.page.locator("#age")).to_have_text(re.compile(r"\d+ s ago"))
        expect(seen.page.locator("#streams")).to_contain_text("bikes.places")
        assert seen.errors == []
        assert {urlsplit(each).netloc for each in seen.requests} == {urlsplit(url).netloc}


def test_a_tile_that_fails_says_why_and_leaves_the_others(shop: Shop, browser: Browser) -> None:
    broken = {**FIGURE, "title": "Broken", "sql": "select returns from marts.returns"}
    undrawn = {**CHART, "title": "Undrawn", "sql": "select 1 as minute"}
    with (
        served(shop.pages([FIGURE, broken, undrawn, {**MAP, "label": "rider"}]), shop.lake) as url,
        looking(browser, url) as seen,
    ):
        expect(tile(seen.page, FIGURE).locator(".value")).to_have_text("0")
        expect(tile(seen.page, broken).locator(".problem")).to_contain_text("does not exist")
        expect(tile(seen.page, undrawn).locator(".problem")).to_contain_text("spec draws 'sales'")
        expect(tile(seen.page, MAP).locator(".problem")).to_contain_text("no column 'rider'")
        shop.replace("marts.returns", returns=[4])
        expect(tile(seen.page, broken).locator(".value")).to_have_text("4")
        expect(tile(seen.page, broken).locator(".problem")).to_be_hidden()


def test_text_of_an_event_is_only_text(shop: Shop, browser: Browser) -> None:
    shop.move(HOSTILE, 2)
    listed = {**TABLE, "sql": "select distinct courier from staging.places order by all limit 1"}
    listed.pop("format")
    with (
        served(shop.pages([MAP, listed]), shop.lake) as url,
        looking(browser, url) as seen,
    ):
        expect(tile(seen.page, listed).locator("td")).to_have_text(HOSTILE)
        expect(seen.page.locator(".point text", has_text="onerror")).to_have_count(1)
        assert seen.page.locator("img").count() == 0
        assert seen.errors == []


def test_a_lost_server_is_told_and_found_again(shop: Shop, browser: Browser) -> None:
    pages = shop.pages()
    with ExitStack() as first:
        url = first.enter_context(served(pages, shop.lake))
        with looking(browser, url) as seen:
            seen.page.evaluate("document.body.dataset.same = 'page'")
            first.close()
            expect(seen.page.locator("#state")).to_have_text("Not connected", timeout=20_000)
            expect(seen.page.locator("#trouble")).to_contain_text("Not connected since")
            shop.sell(4)
            port = urlsplit(url).port
            assert port
            with served(pages, shop.lake, port):
                expect(seen.page.locator("#state")).to_have_text("Live", timeout=20_000)
                expect(tile(seen.page, FIGURE).locator(".value")).to_have_text("4")
            with served(pages, shop.lake, port, token="another"):  # noqa: S106
                told = seen.page.locator("#trouble")
                expect(told).to_contain_text("The token is another one now", timeout=20_000)
            assert seen.page.locator("body[data-same]").count() == 1


def test_a_stream_that_fell_silent_is_told(shop: Shop, browser: Browser) -> None:
    pages = shop.pages(stale_after="1s")
    with served(pages, shop.lake) as url, looking(browser, url) as seen:
        told = seen.page.locator("#trouble")
        expect(told).to_have_text(re.compile("Behind: bikes.places: last commit .* ago"))
        expect(seen.page.locator("#age")).to_have_class("late")


def test_a_lake_that_cannot_be_read_is_told(shop: Shop, browser: Browser) -> None:
    with served(shop.pages(), shop.lake) as url, looking(browser, url) as seen:
        folder = Path(shop.lake.root, "_tarn/releases")
        folder.rename(folder.with_name("away"))
        expect(seen.page.locator("#state")).to_have_text("Cannot read")
        expect(seen.page.locator("#trouble")).to_contain_text("no release")
        folder.with_name("away").rename(folder)
        expect(seen.page.locator("#state")).to_have_text("Live")
        expect(seen.page.locator("#trouble")).to_be_hidden()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_sticks_out(shop: Shop, browser: Browser, size: tuple[int, int]) -> None:
    with served(shop.pages(), shop.lake) as url, looking(browser, url, size) as seen:
        expect(tile(seen.page, CHART)).to_have_attribute("data-drawn", "true")
        width = seen.page.evaluate("document.documentElement.scrollWidth")
        assert width <= size[0]


class Counting(feed.Reader):
    """Knows how often pages were read."""

    reads = 0

    async def read(self, page: LivePage) -> feed.State:
        self.reads += 1
        return await super().read(page)


def test_viewers_share_one_reading_and_none_is_done_for_nobody(shop: Shop) -> None:
    async def look() -> None:
        reader = Counting(shop.lake)
        shared = feed.Feed(shop.pages()[0], reader)
        first, second = shared.events(), shared.events()
        both = await asyncio.gather(anext(first), anext(second))
        assert reader.reads == 1
        assert both[0] == both[1]
        for viewer in (first, second):
            await viewer.aclose()
        await asyncio.sleep(2.5)
        before = reader.reads
        await asyncio.sleep(1.5)
        assert reader.reads == before <= 3

        third = shared.events()
        assert '"0": ' in await anext(third)
        assert '"0": ' not in await anext(third)
        await third.aclose()

    # In a thread of its own: playwright has a loop in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, look()).result()


def test_the_command_prints_the_address_that_opens_the_page(
    tmp_path: Path, project_env: Mapping[str, str]
) -> None:
    project = Project(tmp_path / "project", {**project_env, "TARN_LIVE_TOKEN": "known & kept"})
    run = {
        "kind": "live", "page": "orders", "title": "Orders", "tiles": [
            {"kind": "figure", "title": "Orders", "sql": "select count(*) from marts.fct_orders"}
        ],
    }  # fmt: skip
    exposure = {
        "name": "orders_live", "type": "dashboard", "owner": {"email": "us@example.com"},
        "depends_on": ["ref('fct_orders')"], "config": {"meta": {"run": run}},
    }  # fmt: skip
    project.write("models/exposures/live.yml", yaml.safe_dump({"exposures": [exposure]}))
    project.dbt("build")
    command = [str(BIN / "tarn"), "live", "--port", "0"]
    with subprocess.Popen(
        command, cwd=project.folder, env=project.env, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            title, _, address = server.stdout.readline().strip().partition(": ")
            assert title == "Orders"
            opened = requests.Session()
            assert opened.get(address, timeout=20).status_code == 200
            events = f"{address.partition('?')[0]}/events"
            with opened.get(events, stream=True, timeout=20) as answer:
                line = next(answer.iter_lines()).decode()
            assert '<p class=\\"value\\">3</p>' in line
        finally:
            server.terminate()
            server.wait(20)
