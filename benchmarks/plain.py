"""The demo's tables by one plain SQL script: no dbt, no tests, no contracts, no releases.

The queries are those that dbt runs, taken from one build, in dbt's order.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import yaml
from deltalake import DeltaTable, WriterProperties, write_deltalake

from benchmarks.harness import RUN, beside
from tarn.storage.duck import identifier, select_from

_STORED = ("model", "seed", "snapshot")


@dataclass(frozen=True)
class Step:
    """A view, or a table to be written."""

    name: str
    sql: str
    is_view: bool
    partition_by: list[str]


@dataclass(frozen=True)
class Script:
    """The steps of a project's build, in an order in which they can be run."""

    folder: Path
    steps: list[Step]

    @classmethod
    def of(cls, folder: Path) -> "Script":
        """The script of a project, made by one build if it is not there yet."""
        file = folder / "plain.json"
        if not file.exists():
            only_raw(folder)
            command = [beside("dbt"), "--quiet", "build"]
            subprocess.run(command, cwd=folder, check=True)
            file.write_text(json.dumps([asdict(step) for step in _steps(folder / "target")]))
        return cls(folder, [Step(**step) for step in json.loads(file.read_text())])

    def run(self, output: Path) -> None:
        """Write every table below `output`."""
        profile = yaml.safe_load((self.folder / "profiles.yml").read_text())
        limit = profile["tarn"]["outputs"]["dev"]["config_options"]["memory_limit"]
        connection = duckdb.connect(config={"memory_limit": limit, "threads": 2})
        connection.execute("set preserve_insertion_order = false; set TimeZone = 'UTC'")
        connection.execute(f"set temp_directory = '{RUN / 'spill'}'")
        for path in sorted((self.folder / "lake").glob("raw_*/*")):
            _show(connection, f"{path.parent.name}.{path.name}", path)
        for step in self.steps:
            schema = identifier(step.name.partition(".")[0])
            connection.execute(f"create schema if not exists {schema}")
            if step.is_view:
                connection.execute(f"create view {identifier(step.name)} as {step.sql}")
                continue
            path = output / step.name.replace(".", "/")
            write_deltalake(
                str(path),
                connection.execute(step.sql).to_arrow_reader(122_880),
                partition_by=step.partition_by or None,
                writer_properties=WriterProperties(compression="ZSTD", compression_level=1),
            )
            _show(connection, step.name, path)

    def show_all_but(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        """Let a connection see the built project's tables and views, but for one."""
        lake = self.folder / "lake"
        for path in sorted(lake.glob("*/*/_delta_log")):
            shown = f"{path.parent.parent.name}.{path.parent.name}"
            if shown != name:
                _show(connection, shown, path.parent)
        for step in self.steps:
            if step.is_view:
                schema = identifier(step.name.partition(".")[0])
                connection.execute(f"create schema if not exists {schema}")
                connection.execute(f"create view {identifier(step.name)} as {step.sql}")


def only_raw(folder: Path) -> None:
    """Take from a project's lake all that a build made."""
    for path in (folder / "lake").iterdir():
        if not path.name.startswith("raw_"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _show(connection: duckdb.DuckDBPyConnection, name: str, path: Path) -> None:
    connection.execute(f"create schema if not exists {identifier(name.partition('.')[0])}")
    sql = select_from(DeltaTable(str(path)))
    connection.execute(f"create or replace view {identifier(name)} as {sql}")


def _steps(target: Path) -> list[Step]:
    nodes = json.loads((target / "manifest.json").read_text())["nodes"]
    results = json.loads((target / "run_results.json").read_text())["results"]
    made = sorted(
        (r for r in results if nodes.get(r["unique_id"], {}).get("resource_type") in _STORED),
        key=lambda r: r["timing"][-1]["completed_at"],
    )
    return [_step(nodes[result["unique_id"]], target) for result in made]


def _step(node: dict[str, Any], target: Path) -> Step:
    kind, by = node["config"]["materialized"], node["config"].get("partition_by") or []
    if kind == "seed":
        types = node["config"]["column_types"] or {}
        sql = f"select * from read_csv('{node['original_file_path']}', types = {types})"
    elif kind == "view":
        sql = node["compiled_code"]
    else:
        sql = next((target / "run").rglob(f"{node['name']}.sql")).read_text()
    name = f"{node['schema']}.{node['alias']}"
    return Step(name, sql, kind == "view", [by] if isinstance(by, str) else by)


if __name__ == "__main__":
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    Script.of(Path(sys.argv[1])).run(Path(sys.argv[2]))
