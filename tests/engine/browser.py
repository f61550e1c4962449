"""Pages opened from disk in a real browser, and what they say and ask for."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1600, 1000), (390, 844)


@dataclass
class Opened:
    """A page, its errors and all it requested while it was open."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def hear(self, said: ConsoleMessage) -> None:
        """Keep what the console takes for an error."""
        if said.type == "error":
            self.errors.append(said.text)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own browser, headless, with a profile of its own that is thrown away."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no browser: install Chromium (apt-get install chromium) or Google Chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, file: Path, size: tuple[int, int] = DESKTOP, **options: Any
) -> Iterator[Opened]:
    """A page from disk, drawn to the end. `options` are those of a playwright context."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    found = Opened(context.new_page())
    found.page.on("console", found.hear)
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(file.as_uri(), wait_until="load")
    if options.get("java_script_enabled", True) and found.page.locator(".drawing").count():
        found.page.wait_for_selector("body[data-drawn]")
    yield found
    context.close()
