"""dbt commands, each a process of its own, on one small project: what they leave and publish.

What each materialization does to a Delta table is in tests/adapter.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tarn.storage import readers, releases
from tarn.storage.lake import Lake
from tests.engine.conftest import BIN, ROOT

PROJECT = """
name: tarn
profile: tarn
macro-paths: [{macros}]
on-run-end: "{{{{ publish_release(results) }}}}"
flags: {{send_anonymous_usage_stats: false}}
models:
  +file_format: delta
  +materialized: table
  +schema: marts
  +persist_docs: {{relation: true, columns: true}}
seeds: {{+file_format: delta, +schema: seeds}}
snapshots: {{+file_format: delta, +schema: snapshots}}
"""
SEED = "order_id,state,amount\n1,new,1.50\n2,new,2.50\n3,,3.50\n"
MODELS = {
    "orders": """{{ config(materialized='view', schema='staging') }}
        select * from {{ ref('orders_seed') }}""",
    "fct_orders": """
        select order_id, cast(amount as decimal(12, 2)) as amount from {{ ref('orders') }}""",
    "merged": """{{ config(materialized='incremental', unique_key='order_id') }}
        select order_id, state, {{ 2 if is_incremental() else 1 }} as run from {{ ref('orders') }}
        {% if is_incremental() %} where order_id >= 2 {% endif %}""",
}
SNAPSHOT = """
snapshots:
  - name: snap_orders
    relation: ref('orders')
    config: {unique_key: order_id, strategy: check, check_cols: [state], hard_deletes: invalidate}
"""
BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
CONTRACT = """
models:
  - name: fct_orders
    description: One row per order.
    config: {contract: {enforced: true}}
    columns:
      - name: order_id
        data_type: integer
        description: Number on the receipt.
        data_tests: [unique]
      - {name: amount, data_type: "decimal(12, 2)", constraints: [{type: not_null}]}
"""


class Project:
    """A dbt project in a temporary folder, with a lake of its own."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env = folder, env
        self.lake = Lake(str(folder / "lake"))
        self.write("profiles.yml", (ROOT / "profiles.yml").read_text())
        self.write("dbt_project.yml", PROJECT.format(macros=ROOT / "tarn/dbt/macros"))
        self.write("seeds/orders_seed.csv", SEED)
        self.write("snapshots/snap_orders.yml", SNAPSHOT)
        self.write("models/fct_orders.yml", CONTRACT)
        for name, sql in MODELS.items():
            self.write(f"models/{name}.sql", sql)

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)

    def dbt(self, *arguments: str, succeeds: bool = True) -> str:
        done = subprocess.run(
            [str(BIN / "dbt"), *arguments],
            cwd=self.folder, env=self.env, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
        return done.stdout

    def rows(self, name: str) -> list[dict[str, Any]]:
        return pl.read_delta(self.lake.uri(name)).to_dicts()

    def version(self, name: str) -> int:
        table = self.lake.table(name)
        assert table is not None
        return table.version()

    def release(self) -> releases.Release:
        release = releases.current(self.lake)
        assert release is not None
        return release


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, project_env: Mapping[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("dbt") / "built"
    said = Project(folder, project_env).dbt("build")
    assert "Release 1: 4 tables new, 4 in all." in said
    return folder


@pytest.fixture
def project(built: Path, tmp_path: Path, project_env: Mapping[str, str]) -> Project:
    """The project after its first build."""
    return Project(Path(shutil.copytree(built, tmp_path / "project")), project_env)


def test_the_next_process_goes_on_where_the_last_one_ended(project: Project) -> None:
    shown = project.dbt(
        "show", "--quiet", "--output", "json",
        "--inline", "select sum(amount) as total from {{ ref('orders') }}",
    )  # fmt: skip
    assert json.loads(shown)["show"] == [{"total": 7.5}]

    project.write(
        "seeds/orders_seed.csv", "order_id,state,amount\n2,paid,2.50\n3,,4.00\n4,new,1.00\n"
    )
    assert "Release 2: 4 tables new, 4 in all." in project.dbt("build")
    amounts = {row["order_id"]: str(row["amount"]) for row in project.rows("marts.fct_orders")}
    assert amounts == {2: "2.50", 3: "4.00", 4: "1.00"}
    runs = {row["order_id"]: row["run"] for row in project.rows("marts.merged")}
    assert runs == {1: 1, 2: 2, 3: 2, 4: 2}
    versions = [
        (row["order_id"], row["state"], row["dbt_valid_to"] is None)
        for row in project.rows("snapshots.snap_orders")
    ]
    assert sorted(versions, key=str) == [
        (1, "new", False), (2, "new", False), (2, "paid", True), (3, None, True), (4, "new", True),
    ]  # fmt: skip


def test_a_red_build_publishes_nothing_and_a_select_keeps_the_rest(project: Project) -> None:
    first = project.release()
    project.write("models/merged.sql", "select broken from {{ ref('orders') }}")
    assert "No release: 1 of 6 nodes failed" in project.dbt("build", succeeds=False)
    assert project.release() == first

    project.write("models/fct_orders.sql", MODELS["fct_orders"] + " where order_id > 1")
    project.dbt("build", "--select", "fct_orders")
    second = project.release()
    assert [change.name for change in releases.diff(first, second)] == ["marts.fct_orders"]

    (project.folder / "models/merged.sql").unlink()
    project.write("models/fct_orders.sql", MODELS["fct_orders"])
    project.dbt("build", "--select", "fct_orders")
    assert "marts.merged" not in project.release().tables


def test_of_two_builds_at_once_one_is_refused_and_upkeep_knows_what_they_read(
    project: Project,
) -> None:
    building = subprocess.Popen(
        [str(BIN / "dbt"), "build"],
        cwd=project.folder,
        env=project.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert building.stdout is not None
    said = iter(building.stdout)
    while " START " not in next(said):
        pass
    versions = {name: project.version(name) for name in project.lake.names()}
    assert list(readers.versions_read(project.lake, BEGINNING)) == [versions]
    others = releases.publish(project.lake, {}, project.release(), {})
    assert "release 2 was published by somebody else" in "".join(said)
    assert building.wait() != 0
    assert project.release() == others
    assert not list(readers.versions_read(project.lake, BEGINNING))


def test_other_commands_and_rehearsals_publish_and_write_nothing(project: Project) -> None:
    before = {name: project.version(name) for name in project.lake.names()}
    for command in (["test"], ["build", "--empty"], ["compile"], ["docs", "generate"]):
        project.dbt(*command)
    assert {name: project.version(name) for name in project.lake.names()} == before
    assert releases.numbers(project.lake) == [1]
    catalog = json.loads((project.folder / "target/catalog.json").read_text())
    documented = catalog["nodes"]["model.tarn.fct_orders"]
    assert documented["metadata"]["type"] == "Delta table"
    assert documented["stats"]["rows"]["value"] == 3
    project.dbt("run")
    assert releases.numbers(project.lake) == [1]


def test_a_table_says_what_it_is_and_who_wrote_it(project: Project) -> None:
    table = project.lake.table("marts.fct_orders")
    assert table is not None
    assert table.schema().fields[0].metadata == {"comment": "Number on the receipt."}
    assert table.history(1)[0]["tarn.model"] == "model.tarn.fct_orders"
    assert table.metadata().description == "One row per order."
