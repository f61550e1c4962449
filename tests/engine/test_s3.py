"""A lake on S3: the commands work, two cannot publish at once, and what is wrong is said once."""

import csv
import http.server
import threading
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from deltalake.exceptions import CommitFailedError

from tarn.errors import TarnError
from tarn.settings import Settings
from tarn.storage import releases, soundness
from tarn.storage.duck import client, prepare, select_from
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin
from tarn.storage.s3 import S3
from tarn.storage.writer import write
from tests.engine.conftest import BIN, ROOT, run

PROJECT = f"""
name: small
profile: tarn
macro-paths: ["{ROOT / "tarn/dbt/macros"}"]
on-run-end: "{{{{ publish_release(results) }}}}"
flags: {{send_anonymous_usage_stats: false}}
models: {{small: {{+file_format: delta, staging: {{+materialized: view, +schema: staging}},
                   marts: {{+materialized: table, +schema: marts}}}}}}
"""
SOURCE = """
system: till
description: A till.
owner: {name: Shop, email: shop@example.com}
kind: files
connection: upstream
tables:
  sales: {description: Sales., path: "*.csv", primary_key: [sale_id], write: merge}
"""
FILES = {
    "dbt_project.yml": PROJECT,
    "ingestion/till.yml": SOURCE,
    "upstream/1.csv": "sale_id,amount\n1,1.50\n2,2.50\n",
    "models/staging/sources.yml": """
sources: [{name: till, schema: raw_till, tables: [{name: sales}]}]
""",
    "models/staging/stg_till__sales.sql": """
select sale_id, cast(amount as decimal(12, 2)) as amount from {{ source('till', 'sales') }}
""",
    "models/marts/fct_sales.sql": """
select sale_id, amount from {{ ref('stg_till__sales') }}
""",
}
SECRETS = "AWS_SECRET_ACCESS_KEY={AWS_SECRET_ACCESS_KEY}\nAWS_ACCESS_KEY_ID={AWS_ACCESS_KEY_ID}\n"


@pytest.fixture
def lake(s3: Mapping[str, str], tmp_path: Path) -> Lake:
    return Lake(f"s3://lake/{uuid4().hex}", S3(s3), work_dir=tmp_path)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without AWS's variables and files; the folder for those of the test."""
    import os

    for name in [name for name in os.environ if name.upper().startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def opened(lake: str, variables: Mapping[str, str], tmp_path: Path) -> Lake:
    return Lake.open(Settings(tmp_path, lake, tmp_path / ".tarn", dict(variables)))


def test_the_commands_work_on_s3_as_on_disk(
    s3: Mapping[str, str], tmp_path: Path, project_env: Mapping[str, str]
) -> None:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "profiles.yml").write_text((ROOT / "profiles.yml").read_text())
    (tmp_path / "secrets.env").write_text(SECRETS.format(**s3))
    public = {name: s3[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}
    root = f"s3://lake/{uuid4().hex}/small"
    env = {**project_env, **public, "TARN_LAKE": root}

    def tarn(*arguments: str, program: str = "tarn") -> str:
        done = run(tmp_path, env, str(BIN / program), *arguments)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert s3["AWS_SECRET_ACCESS_KEY"] not in said
        return done.stdout

    def total() -> list[list[str]]:
        said = tarn("query", "--format", "csv", "select count(*), sum(amount) from marts.fct_sales")
        return list(csv.reader(said.splitlines()))[1:]

    tarn("ingest")
    tarn("build", program="dbt")
    assert total() == [["2", "4.00"]]
    (tmp_path / "upstream/2.csv").write_text("sale_id,amount\n2,3.50\n3,1.00\n")
    tarn("ingest")
    tarn("build", program="dbt")
    tarn("release", "rollback")
    (tmp_path / ".tarn/catalog.duckdb").unlink()
    assert total() == [["2", "4.00"]]
    current = releases.current(Lake(root, S3(s3)))
    assert current is not None
    assert current.number == 3
    names = Lake(root, S3(s3)).names()
    assert {"raw_till.sales", "marts.fct_sales"} <= set(names)
    assert not (tmp_path / "lake").exists()


def test_of_two_commits_to_one_version_the_second_fails(lake: Lake) -> None:
    write(lake, "raw.t", pa.table({"n": [1]}), mode="append")
    first, second = lake.table("raw.t"), lake.table("raw.t")
    assert first is not None
    assert second is not None
    write_deltalake(first, pa.table({"n": [2]}), mode="overwrite")
    with pytest.raises(CommitFailedError):
        write_deltalake(second, pa.table({"n": [3]}), mode="overwrite")
    table = lake.table("raw.t")
    assert table is not None
    assert table.version() == 1


def test_of_many_publishers_at_once_one_wins(lake: Lake) -> None:
    write(lake, "marts.t", pa.table({"n": [1]}), mode="append")
    table = lake.table("marts.t")
    assert table is not None
    pins, won, refused = {"marts.t": Pin.of(table)}, [], []

    def publish(name: str) -> None:
        try:
            won.append(releases.publish(lake, pins, None, {"by": name}))
        except TarnError:
            refused.append(name)

    threads = [threading.Thread(target=publish, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 5)
    assert releases.read(lake, 1) == won[0]


def test_a_file_that_is_gone_is_told_to_who_reads_it(lake: Lake) -> None:
    write(lake, "raw.t", pa.table({"n": [1]}), mode="append")
    table = lake.table("raw.t")
    assert table is not None
    lake.objects.delete(f"raw/t/{table.file_uris()[0].rpartition('/')[2]}")
    with duckdb.connect() as connection:
        prepare(connection, lake)
        with pytest.raises(duckdb.Error, match="404"):
            connection.execute(select_from(table)).fetchall()


def test_an_empty_commit_is_refused(lake: Lake) -> None:
    write(lake, "raw.t", pa.table({"n": [1]}), mode="append")
    lake.objects.put(f"raw/t/_delta_log/{1:020d}.json", b"")
    with pytest.raises(TarnError, match="commit 1 is empty"):
        lake.table("raw.t")


def test_an_empty_commit_is_found_however_far_back_it_is(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "_LAST", 1)
    for value in range(4):
        write(lake, "raw.t", pa.table({"n": [value]}), mode="append")
    lake.objects.put(f"raw/t/_delta_log/{1:020d}.json", b"")
    with pytest.raises(TarnError, match="commit 1 is empty"):
        lake.table("raw.t")


@pytest.mark.parametrize(
    ("changed", "lake", "told"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://lake/x", "S3 does not answer"),
        ({}, "s3://nobucket/x", "there is no bucket nobucket"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9"}, "s3://lake/x", "no http:// or https://"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "s3://lake/x", "only one of AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_keeps_a_lake_from_being_opened_is_said_once(
    s3: Mapping[str, str], tmp_path: Path, changed: dict[str, str], lake: str, told: str
) -> None:
    with pytest.raises(TarnError, match=told) as failure:
        opened(lake, {**s3, **changed}, tmp_path)
    assert len(str(failure.value)) < 300
    assert s3["AWS_SECRET_ACCESS_KEY"] not in str(failure.value)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("InvalidAccessKeyId", "does not accept the credentials"),
        ("SignatureDoesNotMatch", "does not accept the credentials"),
        ("ExpiredToken", "does not accept the credentials"),
        ("AccessDenied", "denies access"),
    ],
)
def test_credentials_that_are_refused_are_said_to_be(
    s3: Mapping[str, str], tmp_path: Path, code: str, told: str
) -> None:
    with _Refusing(code) as url, pytest.raises(TarnError, match=told) as failure:
        opened("s3://lake/x", {**s3, "AWS_ENDPOINT_URL": url}, tmp_path)
    assert s3["AWS_ACCESS_KEY_ID"] not in str(failure.value)


def test_without_keys_a_profile_serves_all_three_libraries(
    s3: Mapping[str, str], alone: Path
) -> None:
    file = alone / "credentials"
    keys = (s3[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    file.write_text("[mine]\naws_access_key_id={}\naws_secret_access_key={}\n".format(*keys))
    (alone / "config").write_text("[profile mine]\nregion=eu-west-3\n")
    variables = {
        "AWS_ENDPOINT_URL": s3["AWS_ENDPOINT_URL"],
        "AWS_PROFILE": "mine",
        "AWS_SHARED_CREDENTIALS_FILE": str(file),
        "AWS_CONFIG_FILE": str(alone / "config"),
    }
    lake = opened(f"s3://lake/{uuid4().hex}", variables, alone)
    assert lake.service is not None
    assert lake.service.region == "eu-west-3"
    write(lake, "raw.t", pa.table({"n": [1]}), mode="append")
    table = lake.table("raw.t")
    assert table is not None
    with duckdb.connect() as connection:
        prepare(connection, lake)
        assert connection.execute(select_from(table)).fetchall() == [(1,)]


def test_without_any_credentials_that_is_said(s3: Mapping[str, str], alone: Path) -> None:
    variables = {"AWS_ENDPOINT_URL": s3["AWS_ENDPOINT_URL"]}
    with pytest.raises(TarnError, match="no credentials for S3"):
        opened("s3://lake/x", variables, alone)
    with pytest.raises(TarnError, match="no credentials for S3"):
        opened("s3://lake/x", {**variables, "AWS_PROFILE": "unknown"}, alone)


def test_credentials_that_are_renewed_reach_who_opens_a_table_next(
    s3: Mapping[str, str], alone: Path
) -> None:
    """A program that hands out credentials for a moment, as SSO and roles do."""
    handed = alone / "handed"
    program = alone / "program.py"
    program.write_text(_PROGRAM.format(file=str(handed)))
    (alone / "config").write_text(f"[default]\ncredential_process = {BIN / 'python'} {program}\n")
    variables = {
        "AWS_ENDPOINT_URL": s3["AWS_ENDPOINT_URL"], "AWS_CONFIG_FILE": str(alone / "config"),
    }  # fmt: skip
    lake = opened(f"s3://lake/{uuid4().hex}", variables, alone)
    first = lake.options["AWS_ACCESS_KEY_ID"]
    assert lake.options["AWS_ACCESS_KEY_ID"] != first
    assert "AWS_SESSION_TOKEN" in lake.options
    write(lake, "raw.t", pa.table({"n": [1]}), mode="append")
    assert lake.names() == ["raw.t"]


_PROGRAM = """
import datetime, json, pathlib
file = pathlib.Path({file!r})
file.write_text((file.read_text() if file.exists() else "") + "x")
ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=30)
print(json.dumps({{"Version": 1, "AccessKeyId": f"KEY{{len(file.read_text())}}",
    "SecretAccessKey": "secret", "SessionToken": "token", "Expiration": ends.isoformat()}}))
"""


def test_no_secret_is_shown(s3: Mapping[str, str], lake: Lake) -> None:
    assert lake.service is not None
    statements, variables = client(lake)
    for secret in (s3["AWS_SECRET_ACCESS_KEY"], s3["AWS_ACCESS_KEY_ID"]):
        assert secret not in repr(lake) + repr(lake.service) + repr(lake.service.keys())
        assert secret not in "; ".join(statements)
        assert secret in variables.values()


class _Refusing:
    """A service that answers every request with one error of S3's."""

    def __init__(self, code: str) -> None:
        self.body = (
            f"<?xml version='1.0'?><Error><Code>{code}</Code>"
            "<AWSAccessKeyId>AKIATHISISOURS</AWSAccessKeyId></Error>"
        ).encode()

    def __enter__(self) -> str:
        body = self.body

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
