"""What tests share: temporary lakes, and one copy of the project built by its own commands."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from filelock import FileLock

from tarn.settings import settings
from tarn.storage.lake import Lake
from tarn.storage.s3 import S3

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_NOT_IN_A_CLONE = {".git", ".venv", "lake", ".tarn", ".run", "target", "site", "logs"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is installed (CI), a test that skips itself has failed."""
    report = yield
    if report.skipped and os.environ.get("TARN_TESTS_SKIP_NOTHING"):
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `everywhere` that take a lake run with one on disk and with one on S3."""
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    if "lake" in metafunc.fixturenames and "everywhere" in marks:
        places = ["disk"] if "on_disk" in marks else ["disk", "s3"]
        metafunc.parametrize("lake", places, indirect=True)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Generator[Mapping[str, str], None, None]:
    """An S3 service of our own with the bucket `lake`: the variables by which it is reached."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = str(chosen.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIATHISISOURS",
        "AWS_SECRET_ACCESS_KEY": "a/secret+of=ours",
        "AWS_REGION": "eu-central-1",
    }
    with (tmp_path_factory.mktemp("s3") / "log").open("w") as log:
        # In a process of its own: delta-rs may hold Python's lock while it waits for an answer.
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _make_bucket(variables["AWS_ENDPOINT_URL"] + "/lake", server)
        yield variables
    finally:
        server.terminate()
        server.wait(10)


def _make_bucket(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None, "the S3 service did not start"
        try:
            urlopen(Request(url, method="PUT"), timeout=10).close()
            return
        except (ConnectionError, URLError):
            time.sleep(0.1)
    raise AssertionError("the S3 service does not answer")


@pytest.fixture
def on_s3(s3: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty folder on S3, which the environment tells how to reach."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    return f"s3://lake/{uuid4().hex}"


@pytest.fixture
def lake(tmp_path: Path, request: pytest.FixtureRequest) -> Lake:
    """An empty lake: on disk, or where the test is marked to be."""
    if getattr(request, "param", "disk") == "s3":
        service = S3(request.getfixturevalue("s3"))
        return Lake(f"s3://lake/{uuid4().hex}", service, work_dir=tmp_path)
    (tmp_path / "lake").mkdir()
    return Lake(str(tmp_path / "lake"))


def polars_options(lake: Lake) -> dict[str, str]:
    """How Polars reaches the lake's tables."""
    return {key: value for key, value in lake.options.items() if key.startswith("AWS_")}


@pytest.fixture(scope="session")
def project_env() -> Mapping[str, str]:
    """Environment for commands run in a copy of the project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TARN_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def built_project(tmp_path_factory: pytest.TempPathFactory, project_env: Mapping[str, str]) -> Path:
    """A copy of the project after `make build`. Read it; do not change it."""
    base = tmp_path_factory.getbasetemp()
    # Processes that share the work of one run share the project.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    project, log = folder / "project", folder / "run.log"
    with FileLock(f"{folder}.lock"):
        if not log.exists():
            copy_project(project)
            # With the environment that runs the tests instead of one more.
            done = run(project, project_env, "make", "build", "-o", ".venv/runtime", f"BIN={BIN}")
            log.write_text(f"{done.returncode}\n{done.stdout}{done.stderr}")
    said = log.read_text()
    assert said.startswith("0\n"), said[-5000:]
    return project


@pytest.fixture
def own_project(built_project: Path, tmp_path: Path) -> Path:
    """A built project of the test's own, to change as it likes."""
    project = tmp_path / "project"
    # Files of the lake are never changed in place, so links to them do for a copy.
    shutil.copytree(built_project / "lake", project / "lake", copy_function=os.link)
    ignore = shutil.ignore_patterns("lake")
    shutil.copytree(built_project, project, ignore=ignore, symlinks=True, dirs_exist_ok=True)
    return project


def copy_project(target: Path) -> None:
    """Copy what a clone would hold."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name in _NOT_IN_A_CLONE or name.endswith("_cache")}

    shutil.copytree(ROOT, target, ignore=ignored)


def run(
    project: Path, env: Mapping[str, str], *command: str, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a command in a project and give its output."""
    return subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, timeout=timeout
    )
