"""Rows that may not pass: where they stand, when they were seen, and how they come back."""

import json
from typing import Any

import dlt
import pyarrow as pa
import pytest

from tarn.ingestion.landed import PLACE
from tarn.ingestion.sources import Rejected
from tarn.ingestion.sources.files.source import Files
from tests.engine.ingesting import Project, counts_of, project

__all__ = ["project"]

SHOP = "sqlite:///shop.db"


def _give(monkeypatch: pytest.MonkeyPatch, items: list[Any], is_objects: bool) -> None:
    """Let every table of files be these items."""
    from dlt.extract import DltSource

    from tarn.ingestion.sources import Extract

    def extract(self: Files, table: str, landed: object) -> Extract:
        def opened() -> Any:
            resource = dlt.resource(list(items), name=table)
            return DltSource(dlt.Schema(table), table, [resource]) if is_objects else resource

        return Extract(opened, is_objects=is_objects)

    monkeypatch.setattr(Files, "extract", extract)


BATCH = {"id": ["1", "x"], PLACE: ["a.csv:2", "a.csv:3"]}
REJECTED = Rejected({"line": "1;2;3;4"}, "4 values for 2 columns", "a.csv:4")


@pytest.mark.parametrize("is_objects", [False, True], ids=["rows", "objects"])
def test_what_cannot_be_parsed_is_counted_and_kept_with_its_place(
    project: Project, monkeypatch: pytest.MonkeyPatch, is_objects: bool
) -> None:
    batch = pa.RecordBatch.from_pydict(BATCH)
    items = [*batch.to_pylist(), REJECTED] if is_objects else [batch, REJECTED]
    _give(monkeypatch, items, is_objects)
    (project.path / "drop").mkdir()
    tables = "  ids: {path: '*', primary_key: [id], write: merge, columns: {id: bigint}}"
    project.declare("drop", "files", "drop", tables)
    assert counts_of(project.load()["ids"]) == (3, 1, 2, 0)
    assert [row["id"] for row in project.rows("raw_drop.ids", "id")] == [1]
    assert PLACE not in project.types("raw_drop.ids")
    kept = project.rows("quarantine_drop.ids", order="_place")
    told = [(row["_system"], row["_place"], row["_reason"]) for row in kept]
    assert told == [
        ("drop", "a.csv:3", "id: 'x' is not bigint"),
        ("drop", "a.csv:4", "4 values for 2 columns"),
    ]
    assert json.loads(kept[1]["_row"]) == {"line": "1;2;3;4"}
    before = project.versions()
    assert counts_of(project.load()["ids"]) == (3, 0, 0, 3)
    assert project.versions() == before


@pytest.mark.parametrize("is_objects", [False, True], ids=["rows", "objects"])
def test_nothing_but_what_cannot_be_parsed(
    project: Project, monkeypatch: pytest.MonkeyPatch, is_objects: bool
) -> None:
    whole = [Rejected({}, "is no CSV", f"{name}.csv") for name in "ab"]
    _give(monkeypatch, whole, is_objects)
    (project.path / "drop").mkdir()
    project.declare("drop", "files", "drop", "  ids: {path: '*', write: append}")
    assert counts_of(project.load()["ids"]) == (2, 0, 2, 0)
    assert counts_of(project.load()["ids"]) == (2, 0, 0, 2)
    assert len(project.rows("quarantine_drop.ids")) == 2
