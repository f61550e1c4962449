"""`python -m tests.drills [NAME …] [--seed N] [--rounds N] [--folder F]`; all, without a name."""

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROUNDS = {
    "kill": 100, "disk": 24, "clock": 8, "race": 250, "model": 200,
    "stream": 60, "outage": 600, "alert": 10,
}  # fmt: skip
"""By name, how many in full: kills, amounts of free space, days, changes a writer, examples, kills
of a stream, seconds without brokers, outages that are to be told."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.drills")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ROUNDS)}")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rounds", type=int, help="how many, instead of the full number")
    parser.add_argument("--folder", type=Path, help="where to work; kept, to look at afterwards")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(ROUNDS):
        parser.error(f"no drill {', '.join(unknown)}; there are {', '.join(ROUNDS)}")
    found = 0
    for name in asked.names or ROUNDS:
        folder = (asked.folder or Path(tempfile.mkdtemp(prefix="tarn-drill-"))) / name
        folder.mkdir(parents=True)
        drill = import_module(f"tests.drills.{name}").drill
        told = drill(asked.seed, asked.rounds or ROUNDS[name], folder)
        print(told, flush=True)
        if told.faults:
            print(f"  kept    {folder}", flush=True)
        found += len(told.faults)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
