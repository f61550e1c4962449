"""Where tables stand: in the terminal, as JSON, and as a page."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from playwright.sync_api import Browser

from tarn.cli import cli
from tarn.ingestion.declarations import declared
from tarn.ingestion.landed import Desk
from tarn.ingestion.ledger import Counts, Status, TableLoad, record
from tarn.ingestion.status import status
from tarn.serving.landing import Release
from tarn.serving.loads import loads_page
from tarn.storage.loads import TableStatus
from tarn.storage.writer import write
from tests.engine.browser import DESKTOP, PHONE, chromium, opened
from tests.engine.ingesting import Project, project

__all__ = ["project"]

NOON = datetime(2026, 11, 22, 12)
SYSTEMS = {
    "crm": ("0 2 * * *", "leads"),
    "pos": ("0 2 * * *", "orders"),
    "web": ("0 * * * *", "visits"),
    "old": ("0 2 * * *", "things"),
    "free": ("", "notes"),
}
ERROR = "crm (ingestion/crm.yml:5): cannot reach crm.example.com [timed out]\n  → try again later"


def loaded(system: str, table: str, state: Status, began: datetime, rows: int = 5) -> TableLoad:
    error = ERROR if state == "failed" else None
    counts = Counts(rows, rows) if state == "loaded" else Counts()
    return TableLoad(system, table, state, counts, began, began + timedelta(seconds=90), error)


@pytest.fixture
def standing(project: Project) -> Project:
    """crm failed last night, web is hours late, old was never loaded, pos and free are well."""
    for system, (cron, table) in SYSTEMS.items():
        project.declare(system, "sql_database", "sqlite:///x.db", f"  {table}: {{write: replace}}")
        path = project.path / f"ingestion/{system}.yml"
        path.write_text(path.read_text() + (f'schedule: "{cron}"\n' if cron else ""))
    desk = Desk(project.lake, project.path)
    night = NOON.replace(hour=2)
    loads = [
        loaded("crm", "leads", "loaded", night - timedelta(days=1)),
        loaded("crm", "leads", "failed", night),
        loaded("pos", "orders", "loaded", night - timedelta(days=1), 1234567),
        loaded("pos", "orders", "unchanged", night),
        loaded("pos", "orders__lines", "loaded", night),
        loaded("web", "visits", "loaded", NOON - timedelta(hours=6)),
        loaded("free", "notes", "loaded", NOON - timedelta(days=90)),
    ]
    for load in loads:
        record(desk, "0", [load])
    desk.close()
    rows = pa.table({"_id": ["a", "b", "c"]})
    for name in ("quarantine_pos.orders", "quarantine_pos.orders__lines"):
        write(project.lake, name, rows, mode="append")
    drift = {
        "system": ["crm", "crm", "pos"],
        "table_name": ["leads", "leads", "orders"],
        "column_name": ["name", "size", "x"],
        "verdict": ["blocked", "accepted", "blocked"],
        "noticed_at": pa.array([night, night, night - timedelta(days=3)], pa.timestamp("us")),
    }
    write(project.lake, "tarn.drift", pa.table(drift), mode="append")
    return project


def found_at(project: Project, at: datetime) -> list[TableStatus]:
    return status(project.lake, declared(project.path / "ingestion"), at)


def test_the_worst_comes_first_and_the_rest_is_told(standing: Project) -> None:
    found = {each.system: each for each in found_at(standing, NOON)}
    assert [(name, each.state) for name, each in found.items()] == [
        ("crm", "failed"), ("web", "late"), ("old", "never"), ("free", "ok"), ("pos", "ok"),
    ]  # fmt: skip
    # Due at seven, of which it is five hours.
    assert found["web"].late_seconds == 5 * 3600
    assert (found["crm"].drift, found["pos"].drift) == (1, 0)
    assert found["pos"].quarantined == 6
    pos, crm = found["pos"].history, found["crm"].history
    assert pos is not None
    assert crm is not None
    assert (pos.rows, pos.seconds) == (0, 90)
    assert crm.error == ERROR
    assert crm.succeeded_at == NOON.replace(hour=2) - timedelta(days=1)
    assert found["pos"].due_at == datetime(2026, 11, 23, 2)
    assert found["free"].due_at is None


def test_a_load_has_time_to_end_before_it_is_late(standing: Project) -> None:
    night = NOON.replace(hour=2) + timedelta(days=1)
    for minutes, state in ((5, "ok"), (12, "ok"), (14, "late")):
        found = {
            each.system: each for each in found_at(standing, night + timedelta(minutes=minutes))
        }
        assert found["pos"].state == state


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["status", *arguments])


def test_the_terminal_tells_what_is_wrong(standing: Project) -> None:
    done = run()
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert done.exit_code == 0
    assert lines[1].startswith("failed")
    assert "crm.leads" in lines[1]
    assert (
        lines[-1]
        == "crm.leads: crm (ingestion/crm.yml:5): cannot reach crm.example.com [timed out]"
    )
    assert "\x1b" not in done.stdout
    assert run("--check").exit_code == 1
    assert run("--check", "free").exit_code == 0
    told = [json.loads(line) for line in run("--json").stdout.splitlines()]
    assert told[0]["state"] == "failed"
    assert {each["system"] for each in told} == set(SYSTEMS)


def test_nothing_loaded_yet_is_told_too(project: Project) -> None:
    project.declare("shop", "sql_database", "sqlite:///x.db", "  sales: {write: replace}")
    assert "never" in run().stdout
    assert [each.state for each in found_at(project, NOON)] == ["never"]


def test_a_long_history_stays_in_few_files(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tarn.ingestion.ledger._MOST_FILES", 20)
    desk = Desk(project.lake, project.path)
    for hour in range(30):
        record(desk, str(hour), [loaded("pos", "orders", "loaded", NOON + timedelta(hours=hour))])
    desk.close()
    table = project.lake.table("tarn.loads")
    assert table is not None
    assert len(table.file_uris()) < 15
    assert len(project.rows("tarn.loads")) == 30


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_tells_the_same(
    standing: Project, browser: Browser, size: tuple[int, int], tmp_path: Path
) -> None:
    page = tmp_path / "loads.html"
    release = Release(1, "today", (("marts", "x", 1),))
    page.write_text(loads_page(found_at(standing, NOON), NOON, project="Shop", release=release))
    with opened(browser, page, size) as found:
        assert found.errors == []
        assert found.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        states = found.page.locator("td.state").all_inner_texts()
        assert states[:3] == [
            "Failed",
            "Late by 5 h".replace(" ", "\N{NO-BREAK SPACE}"),
            "Never loaded",
        ]
        assert "cannot reach crm.example.com" in found.page.locator(".why").inner_text()
        assert found.page.locator(".figure .value").all_inner_texts() == ["1", "1", "1", "2"]
    page.write_text(
        loads_page(found_at(standing, datetime.now()), NOON, project="Shop", release=release)
    )
    with opened(browser, page, size) as found:
        assert found.page.locator("#stale").is_hidden()
    with opened(browser, page, size, java_script_enabled=False) as found:
        assert found.page.locator("td.state").count() == 5
