"""Documentation is true: every command in it runs, every link leads somewhere."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.engine.conftest import ROOT, run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "demo/README.md"]
PROGRAMS = ("tarn", "dbt", "mf", "python", "make")
ELSEWHERE = {
    # The project that every test reads was made by it.
    "make build": "conftest.py",
    # It is what runs this.
    "make test": "../../.ci/run",
    "dbt test": "test_dbt.py",
    "dbt docs generate": "test_dbt.py",
    "tarn build --from-release 1": "test_build.py",
    "tarn release diff 1": "test_build.py",
    "tarn release rollback": "test_s3.py",
    "python -m demo -- tarn ingest": "test_project.py",
    "tarn schedule": "test_schedule.py",
    "tarn live": "test_live_pages.py",
    "tarn demo stream --speed 600": "test_demo_streams.py",
    "python -m demo -- tarn stream": "test_demo_streams.py",
    "python -m demo": "test_demo.py",
    "python -m demo stream --speed 60": "test_demo_streams.py",
    "python -m demo make": "test_demo.py",
    "python -m demo postgres URL": "test_demo.py",
}


def commands(page: Path) -> Iterator[str]:
    """Commands in fenced blocks that name no language, without the remarks behind them.

    Blocks of `shell` belong to a page that is followed step by step; see test_how_to.py.
    """
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
        for line in [] if language else block.splitlines():
            if line.startswith(tuple(f"{program} " for program in PROGRAMS)):
                yield re.sub(r"\s+#.*", "", line).strip()


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(commands(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_command_runs(page: Path, own_project: Path, project_env: Mapping[str, str]) -> None:
    for command in commands(page):
        if command in ELSEWHERE or "…" in command:
            continue
        done = run(own_project, project_env, "bash", "-c", command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def test_commands_that_are_run_elsewhere_are() -> None:
    for command, file in ELSEWHERE.items():
        words = command.replace(" URL", "").removeprefix("python ")
        text = (Path(__file__).parent / file).read_text()
        assert words in text or all(word in text for word in words.split()), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_names_every_folder() -> None:
    kept = {
        path.relative_to(ROOT).parts[0]
        for path in ROOT.glob("*/*")
        if not path.parts[len(ROOT.parts)].startswith((".", "_"))
    }
    made = {"lake", "target", "site", "logs", "benchmarks"}
    text = (ROOT / "README.md").read_text()
    assert [folder for folder in sorted(kept - made) if f"`{folder}/`" not in text] == []
