"""Loads tell a webhook when a table begins to fail and when it loads again, and not in between."""

import json
from collections.abc import Iterator

import pytest

from tarn.settings import settings
from tests.engine.ingesting import Project, project
from tests.engine.upstreams import Request, serving

__all__ = ["project"]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the webhook was sent."""
    said: list[str] = []

    def hear(request: Request) -> tuple[int, dict[str, str], bytes]:
        said.extend(json.loads(request.body)["text"].splitlines())
        return 200, {}, b"ok"

    with serving(hear) as address:
        monkeypatch.setenv("TARN_ALERT_WEBHOOK", address)
        settings.cache_clear()
        yield said


def test_a_table_that_fails_is_told_once_and_again_when_it_loads(
    project: Project, heard: list[str]
) -> None:
    tables = "  things: {write: replace}\n  others: {write: replace}"
    project.declare("shop", "sql_database", f"sqlite:///{project.path}/shop.db", tables)
    project.sql("create table others (id int); insert into others values (1)")
    project.load()
    assert [line.partition(":")[0] for line in heard] == ["shop.things failed"]
    project.load()
    assert len(heard) == 1
    project.sql("create table things (id int); insert into things values (1)")
    project.load()
    assert heard[1:] == ["shop.things loads again"]
    project.load()
    project.sql("drop table things")
    project.load()
    assert [line.partition(":")[0] for line in heard[2:]] == ["shop.things failed"]
