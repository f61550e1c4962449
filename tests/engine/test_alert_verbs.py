"""The verbs of alerts, each a process, on one small project; and kill -9 while sending."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml

from tarn.cli.alerts import watched
from tarn.settings import settings
from tarn.storage.lake import Lake
from tests.engine.alerting import WEBHOOK, happen, history
from tests.engine.conftest import BIN, run
from tests.engine.test_dbt import Project
from tests.engine.upstreams import Answer, Request, serving

MODELS = {
    "models/stream.yml": "sources: [{name: shop, schema: raw_shop, tables: [{name: events}]}]",
    "models/stg_events.sql": """{{ config(materialized='view', schema='staging') }}
        select * from {{ source('shop', 'events') }}""",
    "models/fct_hours.sql": "select timestamp '2000-01-01' as hour_start_at, 7 as happened",
    "models/fct_hours.yml": """
models:
  - name: fct_hours
    time_spine: {standard_granularity_column: hour_start_at}
    columns: [{name: hour_start_at, granularity: hour}]
semantic_models:
  - name: hours
    model: ref('fct_hours')
    defaults: {agg_time_dimension: hour_start_at}
    entities: [{name: stretch, type: primary, expr: hour_start_at}]
    dimensions:
      - {name: hour_start_at, type: time, type_params: {time_granularity: hour}}
    measures: [{name: happened, agg: sum}]
metrics:
  - {name: happened, label: Happened, type: simple,
     type_params: {measure: {name: happened, fill_nulls_with: 0}}}
""",
}
COUNT = """
    select count(*) from staging.stg_events
    where occurred_at >= $window_start and occurred_at < $window_end
"""
ALERTS: Mapping[str, Mapping[str, Any]] = {
    "quiet": {"sql": COUNT, "window": "5m", "floor": 1, "every": "1s", "resolve_after": "0s"},
    "lull": {"metric": "happened", "window": "2h", "floor": 1, "notify": []},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, project_env: Mapping[str, str]) -> Path:
    project = Project(tmp_path_factory.mktemp("alerts") / "built", project_env)
    exposures = [
        {
            "name": name,
            "type": "application",
            "owner": {"name": "Us", "email": "us@example.com"},
            "config": {
                "meta": {"run": {"kind": "alert", "title": name, "notify": [WEBHOOK], **alert}}
            },
        }
        for name, alert in ALERTS.items()
    ]
    for path, text in MODELS.items():
        project.write(path, text)
    project.write("models/alerts.yml", yaml.safe_dump({"exposures": exposures}))
    happen(project.lake, "click", datetime(2000, 1, 1))
    project.dbt("build")
    return project.folder


class Shop:
    """A copy of the project, and the webhook that its alerts are sent to."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.lake = folder, Lake(str(folder / "lake"))
        self.heard: list[str] = []
        self.on_hearing: Callable[[], None] = lambda: None
        self.env = env

    def answer(self, request: Request) -> Answer:
        self.heard.append(json.loads(request.body)["text"])
        self.on_hearing()
        return 200, {}, b"ok"

    def alerts(self, *arguments: str, code: int = 0) -> str:
        done = run(self.folder, self.env, "tarn", "alerts", *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def watching(self) -> Iterator["subprocess.Popen[str]"]:
        process = subprocess.Popen(
            [str(BIN / "tarn"), "alerts"], cwd=self.folder, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)

    def rows(self) -> list[dict[str, Any]]:
        """What has happened to the alert `quiet`."""
        known = history(self.lake) if self.lake.table("tarn.alerts") else []
        return [row for row in known if row["alert"] == "quiet"]

    def changes(self) -> list[str]:
        return [row["change"] for row in self.rows()]


@pytest.fixture
def shop(built: Path, tmp_path: Path, project_env: Mapping[str, str]) -> Iterator[Shop]:
    folder = Path(shutil.copytree(built, tmp_path / "project"))
    made = Shop(folder, project_env)
    with serving(made.answer) as address:
        made.env = {**project_env, "HOOK": address}
        yield made


def until(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def test_alerts_are_checked_listed_muted_and_tried(shop: Shop) -> None:
    said = shop.alerts("check", code=1)
    assert "quiet: opened: quiet: 0 in the 5 min to " in said
    # A metric is evaluated like SQL: nothing has happened in the last hours.
    assert "lull: opened: lull: 0 in the 2 h to " in said
    assert [text.partition(":")[0] for text in shop.heard] == ["quiet"]
    assert "quiet  warning   open" in shop.alerts("list")
    happen(shop.lake, "click", now() - timedelta(seconds=1))
    assert "quiet: resolved: Resolved after " in shop.alerts("check", code=1)
    assert "quiet is muted until" in shop.alerts("mute", "quiet", "--for", "2h")
    assert "quiet is no longer muted" in shop.alerts("unmute", "quiet")
    assert "webhook HOOK: sent" in shop.alerts("test", "quiet")
    assert shop.heard[-1] == "quiet: this is a test, nothing has happened"
    assert shop.changes() == ["opened", "resolved", "muted", "unmuted", "tested"]
    declared = shop.folder / "models/alerts.yml"
    declared.write_text(declared.read_text().replace("quiet", "hush"))
    assert "hush   warning" in shop.alerts("list")
    declared.write_text(declared.read_text().replace("hush", "quiet"))
    assert "no alert 'quit'; did you mean 'quiet'?" in shop.alerts("test", "quit", code=1)
    assert "--for: '2 hours' is no time" in shop.alerts("mute", "quiet", "--for", "2 hours", code=1)
    shop.env = {name: value for name, value in shop.env.items() if name != "HOOK"}
    assert "variable HOOK is not set" in shop.alerts("check", code=1)


def test_a_watcher_is_fresh_stands_alone_and_ends_by_signal(shop: Shop) -> None:
    happen(shop.lake, "click", now() - timedelta(minutes=4, seconds=50))
    with shop.watching() as first:
        until(lambda: shop.changes() == ["opened"])
        with shop.watching() as second:
            assert second.stdout is not None
            assert "standing by" in second.stdout.readline()
            assert "this is what it found" in shop.alerts("check", code=1)
            # As fresh as the last commit, without a build.
            happen(shop.lake, "click", now())
            until(lambda: shop.changes() == ["opened", "resolved"])
            first.send_signal(signal.SIGTERM)
            assert first.wait(30) == 0
            # What the first had not sent, the second does.
            until(lambda: len(shop.heard) >= 2)
            assert second.poll() is None
            second.send_signal(signal.SIGINT)
            assert second.wait(30) == 0


def test_kill_9_while_it_is_sent_loses_nothing_and_repeats_once(shop: Shop) -> None:
    with shop.watching() as process:
        # The receiver has the message, the sender is gone before it hears so.
        shop.on_hearing = lambda: os.kill(process.pid, signal.SIGKILL)
        until(lambda: process.poll() is not None)
    shop.on_hearing = lambda: None
    assert (len(shop.heard), shop.changes()) == (1, ["opened"])
    for _ in range(2):
        with shop.watching() as process:
            until(lambda: shop.rows()[0]["delivery"] == "delivered")
    assert len(set(shop.heard)) == 1
    assert (len(shop.heard), shop.changes()) == (2, ["opened"])


def test_what_is_wrong_with_alerts_stops_nothing_else(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shop.folder)
    monkeypatch.delenv("HOOK", raising=False)
    settings.cache_clear()
    stop, said = Event(), ""

    def is_told() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "alerts are not evaluated: models/alerts.yml: quiet: variable HOOK" in said

    with watched(stop):
        until(is_told)
    assert stop.is_set()
    # Where none is declared, nothing is started.
    (shop.folder / "models/alerts.yml").unlink()
    with watched(Event()):
        until(lambda: "no alert is declared" in capsys.readouterr().out)
    settings.cache_clear()
