"""The whole project under the things that happen to it."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tarn.storage import releases
from tarn.storage.lake import Lake
from tests.engine.conftest import BIN, run

SALES = "select sum(sales_amount) from marts.fct_sales"
TOTAL = "4596039.58"


def release(project: Path) -> releases.Release:
    found = releases.current(Lake(str(project / "lake")))
    assert found is not None
    return found


def test_the_first_build_tells_what_came_in_and_where_to_look(built_project: Path) -> None:
    said = (built_project / "run.log").read_text()
    for words in (
        "22,788,318 rows came in",
        "Release 1: ",
        "site/index.html",
        "lake/catalog.duckdb",
        "tarn query",
    ):
        assert words in said
    assert "Traceback" not in said


def test_a_build_leaves_nothing_for_git(built_project: Path) -> None:
    if not (Path(__file__).parents[2] / ".git").exists():
        return
    ignored = ["lake/catalog.duckdb", ".tarn/x", "target/x", "site/x", "demo/.run/x", "secrets.env"]
    command = ["git", "check-ignore", *ignored]
    root = Path(__file__).parents[2]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.split()
    assert found == ignored


def test_a_second_run_moves_nothing_and_keeps_every_number(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    before = release(own_project)
    done = run(own_project, project_env, "python", "-m", "demo", "--", "tarn", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing new" in done.stdout
    after = release(own_project)
    assert after.number == before.number + 1
    assert {n: p.rows for n, p in after.tables.items()} == {
        n: p.rows for n, p in before.tables.items()
    }
    raw = {n: p for n, p in before.tables.items() if n.startswith("raw_")}
    assert raw == {n: p for n, p in after.tables.items() if n.startswith("raw_")}


def test_everything_but_the_lake_comes_back(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    for made in (".tarn", "target", "site", "demo/.run"):
        shutil.rmtree(own_project / made, ignore_errors=True)
    (own_project / "lake/catalog.duckdb").unlink()
    done = run(own_project, project_env, "tarn", "query", "-f", "csv", SALES)
    assert done.stdout.split() == ["sum(sales_amount)", TOTAL], done.stderr

    (own_project / "lake/catalog.duckdb").unlink()
    done = run(own_project, project_env, "dbt", "build", "--select", "marts.sales")
    assert done.returncode == 0, done.stdout
    done = run(own_project, project_env, "tarn", "query", "-f", "csv", SALES)
    assert done.stdout.split() == ["sum(sales_amount)", TOTAL], done.stderr


def test_a_broken_model_is_named_and_readers_see_the_release_before(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    before = release(own_project)
    broken = own_project / "models/marts/sales/dim_store.sql"
    broken.write_text(broken.read_text().replace("store_code", "no_such_column"))
    done = run(own_project, project_env, "dbt", "build", "--select", "dim_store fct_baskets")
    assert done.returncode == 1
    assert "models/marts/sales/dim_store.sql" in done.stdout
    assert "No release:" in done.stdout
    assert release(own_project) == before


def test_a_dead_source_stops_no_other(own_project: Path, project_env: Mapping[str, str]) -> None:
    (own_project / "demo/.run/pos.db").unlink()
    before = release(own_project).tables
    env = {
        **project_env,
        "MARKETING_API_URL": "http://127.0.0.1:9",
        "MARKETING_API_TOKEN": "very-secret",
    }
    done = run(own_project, env, "tarn", "ingest", "marketing", "catalogue", "pos")
    assert done.returncode == 1
    assert "catalogue.products: nothing new" in done.stdout
    assert "cannot reach http://127.0.0.1:9" in done.stderr
    assert "pos.db" in done.stderr
    assert "very-secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lake = Lake(str(own_project / "lake"))
    for name in (name for name in before if name.startswith("raw_")):
        table = lake.table(name)
        assert table is not None
        assert table.version() == before[name].version


def test_the_catalog_opens_in_the_duckdb_prompt_while_a_build_runs(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    building = subprocess.Popen(
        ["dbt", "build", "--select", "marts.marketing"],
        cwd=own_project,
        env=project_env,
        stdout=subprocess.DEVNULL,
    )
    command = [str(BIN / "duckdb"), "-readonly", "-json", "lake/catalog.duckdb", SALES]
    seen = 0
    while building.poll() is None:
        shown = subprocess.check_output(command, cwd=own_project, text=True)
        assert json.loads(shown) == [{"sum(sales_amount)": float(TOTAL)}]
        seen += 1
    assert building.returncode == 0
    assert seen


def test_queries_are_refused_to_change_anything(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    done = run(own_project, project_env, "tarn", "query", "create table x (i int)")
    assert done.returncode == 1
    assert "read-only" in done.stderr


def test_the_prompt_completes_and_answers(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    """In a terminal of its own, as a person types."""
    script = ["script", "--quiet", "--return", "--command", "tarn query", "/dev/null"]
    done = subprocess.run(
        script,
        cwd=own_project,
        env={**project_env, "TERM": "xterm"},
        input=f"{SALES};\n.quit\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert TOTAL in done.stdout.replace(",", "")
