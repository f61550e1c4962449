"""From nothing to a tested mart of a database nobody here designed: four commands."""

import json
import shlex
import shutil
import sqlite3
import zipfile
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from tarn.scaffold.link import LINK
from tests.engine.conftest import BIN, ROOT, run
from tests.engine.postgres import database, postgres

__all__ = ["postgres"]

MUSIC = """
create table "Artist" ("ArtistId" integer primary key, "Name" varchar(120));
create table "Customer" (
    "CustomerId" integer primary key, "First Name" varchar(40) not null, "Email" varchar(60),
    "user" varchar(20), "Order" integer, "BornOn" date, loaded_at timestamp
);
create table "InvoiceLine" (
    "InvoiceId" integer, "LineNo" integer, "UnitPrice" numeric(10, 2) not null,
    "Quantity" integer not null, primary key ("InvoiceId", "LineNo")
);
create table log ("when" timestamp, "text" varchar(200));
create view "BigCustomers" as select "CustomerId" from "Customer";
insert into "Artist" values (1, 'AC/DC'), (2, 'Björk'), (3, null);
insert into "Customer" values
    (1, 'Ann', 'a@x.com', 'ann', 3, '1990-01-02', '2024-01-01 10:00:00'),
    (2, '李雷', null, 'x', null, null, null);
insert into "InvoiceLine" values (1, 1, 0.99, 2), (1, 2, 1.99, 1), (2, 1, 0.99, 1);
insert into log values ('2024-01-01 10:00:00', '{{ hi }} ${HOME}'), (null, null);
"""
LINES = 'select "InvoiceId", "LineNo", "UnitPrice", "Quantity" from "InvoiceLine" order by 1, 2'
CUSTOMERS = 'select "CustomerId", "First Name", "Email", "user", "Order" from "Customer" order by 1'
MART_LINES = (
    "select invoice_id, line_no, unit_price, quantity from marts.fct_invoice_line order by 1, 2"
)
MART_CUSTOMERS = (
    "select customer_id, first_name, email, customer_user, customer_order"
    " from marts.dim_customer order by 1"
)


def follow(folder: Path, env: Mapping[str, str], commands: str) -> str:
    """Run lines of commands in a shell, which must all succeed."""
    done = run(folder, env, "sh", "-ec", commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARN" not in done.stdout.replace("WARN=0", "")
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def mart(project: Path, env: Mapping[str, str], sql: str) -> list[list[str]]:
    """Rows of the current release, as text."""
    done = run(project, env, "tarn", "query", "-f", "json", sql)
    assert done.returncode == 0, done.stderr
    return [as_text(row.values()) for row in json.loads(done.stdout)]


def as_text(row: Any) -> list[str]:
    return [str(Decimal(str(v)).normalize()) if _is_number(v) else str(v) for v in row]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) or str(value).replace(".", "", 1).isdigit()


def test_four_commands_lead_from_sqlite_to_a_tested_mart(
    tmp_path: Path, project_env: Mapping[str, str]
) -> None:
    with closing(sqlite3.connect(tmp_path / "music.db")) as connection:
        connection.executescript(MUSIC)
        lines, customers = (connection.execute(q).fetchall() for q in (LINES, CUSTOMERS))
    follow(
        tmp_path,
        project_env,
        """
        tarn init shop && cd shop
        tarn source new sql_database music --connection sqlite:///../music.db \
            --dim Customer --dim artist --fct invoice_*
        tarn ingest
        tarn build
        """,
    )
    project = tmp_path / "shop"
    assert mart(project, project_env, MART_LINES) == [as_text(row) for row in lines]
    assert mart(project, project_env, MART_CUSTOMERS) == [as_text(row) for row in customers]
    tests = json.loads((project / "target/run_results.json").read_text())["results"]
    assert {"unique_dim_customer_customer_id", "not_null_fct_invoice_line_line_no"} <= {
        result["unique_id"].split(".")[2] for result in tests
    }
    _works_as_this_repository_does(project, project_env)
    _passes_lint(project, project_env)


def _works_as_this_repository_does(project: Path, env: Mapping[str, str]) -> None:
    assert "nothing new" in follow(project, env, "tarn ingest")
    said = follow(project, env, "dbt build --select +fct_invoice_line")
    assert "Nothing changed: release 1 stays" in said
    follow(project, env, "tarn source check && tarn docs")
    assert (project / "site/index.html").exists()
    (project / LINK).unlink()
    assert "Nothing changed" in follow(project, env, "tarn init . && dbt build --select dim_artist")


def _passes_lint(project: Path, env: Mapping[str, str]) -> None:
    """This repository's."""
    config = (ROOT / ".sqlfluff").read_text().replace("tarn/dbt/macros/sql", f"{LINK}/sql")
    (project / ".sqlfluff").write_text(config)
    shutil.copytree(ROOT / "tests/lint", project / "tests/lint")
    shutil.copy(ROOT / "dbt-bouncer.yml", project)
    follow(
        project,
        env,
        "sqlfluff lint --disable-progress-bar models; dbt-bouncer run --only manifest_checks",
    )


def test_four_commands_lead_from_postgresql_to_a_tested_mart(
    tmp_path: Path, project_env: Mapping[str, str], postgres: str
) -> None:
    address = database(postgres, "music")
    with psycopg.connect(address) as connection:
        connection.execute(MUSIC)
        connection.execute("""comment on column "Customer"."Email" is 'Where bills go.'""")
        lines, customers = (connection.execute(query).fetchall() for query in (LINES, CUSTOMERS))
    follow(
        tmp_path,
        project_env,
        f"""
        tarn init shop && cd shop
        tarn source new sql_database music --connection {shlex.quote(address)} --save-secret \
            --dim Customer --fct InvoiceLine
        tarn ingest
        tarn build
        """,
    )
    project = tmp_path / "shop"
    assert mart(project, project_env, MART_LINES) == [as_text(row) for row in lines]
    assert mart(project, project_env, MART_CUSTOMERS) == [as_text(row) for row in customers]
    said = follow(project, project_env, "tarn table show marts.dim_customer")
    assert "Where bills go." in said
    password = address.split(":")[2].split("@")[0]
    known = [p for p in project.rglob("*") if p.is_file() and p.name != "secrets.env"]
    assert not [path for path in known if password.encode() in path.read_bytes()]


def test_a_folder_keeps_what_is_in_it(tmp_path: Path, project_env: Mapping[str, str]) -> None:
    (tmp_path / "README.md").write_text("mine")
    done = run(tmp_path, project_env, "tarn", "init", ".")
    assert done.returncode == 1
    assert "there already: README.md" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_engine_takes_all_its_files_along(
    tmp_path: Path, project_env: Mapping[str, str]
) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tarn", source / "tarn", ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [str(BIN / "pip"), "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    done = run(tmp_path, project_env, *command, "-w", "wheels", "./source")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {str(p.relative_to(source)) for p in source.rglob("tarn/**/*") if p.is_file()} <= held
