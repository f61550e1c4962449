"""`dbt build` of the demo against one plain SQL script that writes the same Delta tables.

dbt build also checks contracts, runs all tests and publishes a release; what that takes is told.
"""

import json
import shutil
import sys
from datetime import datetime
from functools import partial
from pathlib import Path

from benchmarks.demo_lake import project
from benchmarks.harness import CONSOLE, RUN, Contender, beside, compare, python
from benchmarks.plain import Script, only_raw


def where_it_goes(folder: Path) -> str:
    """How the time of the last dbt build divides."""
    ran = json.loads((folder / "target" / "run_results.json").read_text())
    kinds = {"tables": 0.0, "tests": 0.0}
    starts = []
    for result in ran["results"]:
        kind = result["unique_id"].partition(".")[0]
        kinds["tests" if "test" in kind else "tables"] += result["execution_time"]
        starts += [timing["started_at"] for timing in result["timing"]]
    began = min(datetime.fromisoformat(start) for start in starts)
    ended = datetime.fromisoformat(ran["metadata"]["generated_at"])
    spent = (ended - began).total_seconds()
    per_thread = ", ".join(f"{kind} {seconds / 2:.1f} s" for kind, seconds in kinds.items())
    return f"running nodes {spent:.1f} s (over two threads: {per_thread}); the rest is start-up"


def main() -> None:
    """The demo as it is, and ten times as large if told so."""
    for times in (1, 10) if "10x" in sys.argv else (1,):
        folder = project(times)
        output = RUN / f"plain_{times}x"
        Script.of(folder)
        script = python("benchmarks.plain", str(folder), str(output))
        dbt = [beside("dbt"), "--quiet", "build"]
        contenders = [
            Contender("plain SQL script", script, before=partial(shutil.rmtree, output, True)),
            Contender("dbt build", dbt, folder, before=partial(only_raw, folder)),
        ]
        rounds = 3 if times == 1 else 1
        compare(f"demo at {times}x", contenders, rounds)
        CONSOLE.print(f"dbt build at {times}x: {where_it_goes(folder)}\n")
        again = [contenders[0], Contender("dbt build, nothing changed", dbt, folder)]
        compare(f"demo at {times}x, nothing changed", again, rounds)
        CONSOLE.print(f"dbt build, nothing changed: {where_it_goes(folder)}\n")


if __name__ == "__main__":
    main()
