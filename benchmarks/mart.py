"""A mart of 20.9 million rows: written by dbt, and the same query by hand with write_deltalake.

dbt's own time of the model is compared with the time that the query and the write take by hand,
each in a new process; `whole process` adds what it takes to start either.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import duckdb
from deltalake import DeltaTable, WriterProperties, write_deltalake

from benchmarks.demo_lake import project
from benchmarks.harness import RUN, Contender, beside, compare, python

MODEL = "fct_promotions"
OUTPUT = RUN / "mart_by_hand"


def by_hand(folder: Path) -> None:
    """The model's own SQL, streamed by DuckDB into one write_deltalake."""
    from benchmarks.plain import Script

    script = Script.of(folder)
    step = next(step for step in script.steps if step.name.endswith(f".{MODEL}"))
    connection = duckdb.connect(config={"memory_limit": "700MB", "threads": 2})
    connection.execute("set preserve_insertion_order = false")
    connection.execute(f"set temp_directory = '{RUN / 'spill'}'")
    script.show_all_but(connection, step.name)
    started = time.perf_counter()
    write_deltalake(
        str(OUTPUT),
        connection.execute(step.sql).to_arrow_reader(122_880),
        partition_by=step.partition_by or None,
        writer_properties=WriterProperties(compression="ZSTD", compression_level=1),
    )
    seconds = time.perf_counter() - started
    OUTPUT.with_suffix(".json").write_text(json.dumps(seconds))
    assert DeltaTable(str(OUTPUT)).count() > 20_000_000


def main() -> None:
    """Both, in turns."""
    from benchmarks.plain import Script

    folder = project()
    Script.of(folder)
    dbt = [beside("dbt"), "--quiet", "run", "--full-refresh", "--select", MODEL]
    hand = python("benchmarks.mart", "by-hand")
    results = folder / "target" / "run_results.json"

    def by_dbt_seconds() -> float:
        ran = json.loads(results.read_text())["results"]
        (model,) = [each for each in ran if each["unique_id"].endswith(f".{MODEL}")]
        return float(model["execution_time"])

    def by_hand_seconds() -> float:
        return float(json.loads(OUTPUT.with_suffix(".json").read_text()))

    def clean() -> None:
        shutil.rmtree(OUTPUT, ignore_errors=True)

    title = f"{MODEL}, 20.9 million rows: query and write"
    contenders = [
        Contender("write_deltalake by hand", hand, before=clean, inner=by_hand_seconds),
        Contender("dbt, the model", dbt, folder, inner=by_dbt_seconds),
    ]
    compare(title, contenders, rounds=3)
    whole = [
        Contender("write_deltalake by hand", hand, before=clean),
        Contender("dbt run", dbt, folder),
    ]
    compare(f"{MODEL}: whole process", whole, rounds=3)


if __name__ == "__main__":
    by_hand(project()) if sys.argv[1:] == ["by-hand"] else main()
