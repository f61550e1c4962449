"""What tests share: temporary lakes, and one copy of the project built by its own commands."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from tarn.storage.lake import Lake

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


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake on disk."""
    (tmp_path / "lake").mkdir()
    return Lake(str(tmp_path / "lake"))


@pytest.fixture(scope="session")
def project_env() -> Mapping[str, str]:
    """Environment for commands run in a copy of the project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TARN_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def built_project(tmp_path_factory: pytest.TempPathFactory, project_env: Mapping[str, str]) -> Path:
    """A copy of the project after `make build`. Read it; do not change it."""
    project = tmp_path_factory.mktemp("built") / "project"
    copy_project(project)
    # With the environment that runs the tests instead of one more.
    done = run(project, project_env, "make", "build", "-o", ".venv/runtime", f"BIN={BIN}")
    (project / "run.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
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
