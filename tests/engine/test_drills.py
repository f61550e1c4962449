"""The drills of `make drill`, each in a short form: no fault is found."""

import importlib
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from tarn.storage import catalog, releases
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin
from tarn.storage.upkeep.maintain import maintain
from tarn.storage.writer import write
from tests.drills.telling import Drill

ROUNDS = {"kill": 3, "disk": 4, "race": 6, "alert": 1, "stream": 5, "outage": 5}
"""All, in full: tests/drills/__main__.py. The state machine: test_lake_machine.py."""


@pytest.mark.parametrize("name", ROUNDS)
def test_no_fault_is_found(name: str, tmp_path: Path) -> None:
    told: Drill = importlib.import_module(f"tests.drills.{name}").drill(7, ROUNDS[name], tmp_path)
    print(told)
    if told.missing:
        pytest.skip(told.missing)
    assert not told.faults, str(told)
    assert told.did
    assert told.checked


def test_upkeep_shows_a_release_whose_publisher_was_killed(lake: Lake) -> None:
    write(lake, "raw.one", pa.table({"number": [1]}), mode="append")
    first = releases.publish(lake, {"raw.one": Pin.of(_table(lake))}, None, {})
    catalog.build(lake, first)
    write(lake, "raw.one", pa.table({"number": [2]}), mode="append")
    releases.publish(lake, {"raw.one": Pin.of(_table(lake))}, first, {})
    maintain(lake)
    with duckdb.connect(str(catalog.path(lake)), read_only=True) as connection:
        assert connection.execute("select number from tarn.catalog").fetchone() == (2,)
        assert connection.execute("select count(*) from raw.one").fetchone() == (2,)


def _table(lake: Lake) -> DeltaTable:
    table = lake.table("raw.one")
    assert table is not None
    return table
