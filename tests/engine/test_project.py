"""The whole project under the things that happen to it."""

import json
import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import polars as pl

from tarn.storage import releases
from tarn.storage.lake import Lake
from tests.engine.conftest import BIN, run
from tests.engine.postgres import database, postgres

__all__ = ["postgres"]

SALES = "select sum(sales_amount) from marts.fct_sales"
TOTAL = "4596039.58"


def release(project: Path) -> releases.Release:
    found = releases.current(Lake(str(project / "lake")))
    assert found is not None
    return found


def test_the_first_build_tells_what_came_in_and_where_to_look(built_project: Path) -> None:
    said = (built_project.parent / "run.log").read_text()
    for words in (
        "22,830,920 rows came in",
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
    assert f"Nothing changed: release {before.number} stays." in done.stdout, done.stdout
    assert release(own_project) == before


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


def test_the_same_declaration_loads_the_tills_from_postgresql(
    own_project: Path, project_env: Mapping[str, str], postgres: str
) -> None:
    address = database(postgres, "tills")
    done = run(own_project, project_env, "python", "-m", "demo", "postgres", address)
    assert done.returncode == 0, done.stderr
    env = {**project_env, "POS_DATABASE_URL": address, "TARN_LAKE": "postgres-lake"}
    done = run(own_project, env, "tarn", "ingest", "pos")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("stores", "households", "baskets", "basket_items"):
        theirs, ours = (
            pl.read_delta(str(own_project / lake / "raw_pos" / name)).drop("_load_id", "_loaded_at")
            for lake in ("postgres-lake", "lake")
        )
        keys = ours.columns[:2]
        amounts = [column for column, kind in ours.schema.items() if kind == pl.Float64]
        exact = [pl.col(column).cast(pl.Decimal(12, 2)) for column in amounts]
        assert theirs.sort(keys).equals(ours.with_columns(exact).sort(keys)), name
    again = run(own_project, env, "tarn", "ingest", "pos")
    assert "nothing new" in again.stdout.splitlines()[-1]


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
        assert json.loads(shown) == [{"sum(sales_amount)": TOTAL}]
        seen += 1
        time.sleep(0.3)
    assert building.returncode == 0
    assert seen


def test_queries_are_refused_to_change_anything(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    done = run(own_project, project_env, "tarn", "query", "create table x (i int)")
    assert done.returncode == 1
    assert "read-only" in done.stderr


class Terminal:
    """A terminal that somebody sits at: it answers what programs ask terminals."""

    ANSWERS = ((b"\x1b[6n", b"\x1b[24;80R"), (b"\x1b[c", b"\x1b[?62;c"))

    def __init__(self, project: Path, env: Mapping[str, str], *command: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=project,
            env={**env, "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = b""

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until the text is on the screen; from there on the next look begins."""
        end = time.monotonic() + seconds
        while text.encode() not in self.shown:
            assert time.monotonic() < end, self.shown
            self._look()
        self.shown = self.shown.partition(text.encode())[2]

    def wait_for_the_end(self, seconds: float = 60) -> int:
        """Read until the program has ended; its exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, self.shown
            self._look()
        return self.process.returncode

    def _look(self) -> None:
        if select.select([self.ours], [], [], 0.1)[0]:
            with suppress(OSError):  # Linux's word for an end.
                read = os.read(self.ours, 65_536)
                self.shown += read
                for asked, answer in self.ANSWERS:
                    os.write(self.ours, answer * read.count(asked))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())


def test_the_prompt_completes_and_answers(
    own_project: Path, project_env: Mapping[str, str]
) -> None:
    terminal = Terminal(own_project, project_env, "tarn", "query")
    terminal.wait_for(" D ")
    terminal.type("select sum(sales_amount) from marts.fct_sal\t")
    terminal.wait_for("marts.fct_sales")
    terminal.type(";\n")
    terminal.wait_for(TOTAL)
    terminal.wait_for(" D ")
    terminal.type(".quit\n")
    assert terminal.wait_for_the_end() == 0
