"""A private MariaDB for tests: its own folder, its own port, gone afterwards."""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pymysql  # type: ignore[import-untyped]
import pytest

from tests.engine.postgres import PASSWORD, USER, _free_port

_ACCOUNT = "mysql"


@pytest.fixture(scope="session")
def mariadb() -> Iterator[str]:
    """Address of an empty MariaDB server; `mariadb_database` makes a database in it."""
    if not shutil.which("mariadbd") or not shutil.which("mariadb-install-db"):
        pytest.skip("no MariaDB server: install the package mariadb-server")
    with TemporaryDirectory(prefix="tarn-mariadb-") as folder, _running(Path(folder)) as port:
        yield f"mysql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}"


def mariadb_database(server: str, name: str, *statements: str) -> str:
    """Address of a new database, in which statements have been run."""
    mariadb_sql(server, f"create database `{name}`")
    mariadb_sql(f"{server}/{name}", *statements)
    return f"{server}/{name}"


def mariadb_sql(address: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements; the rows of the last."""
    place, _, name = address.rpartition("@")[2].partition("/")
    host, _, port = place.partition(":")
    with (
        closing(
            pymysql.connect(
                host=host,
                port=int(port),
                user=USER,
                password=PASSWORD,
                database=name or None,
                charset="utf8mb4",
                autocommit=True,
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


@contextmanager
def _running(folder: Path) -> Iterator[int]:
    port, socket = _free_port(), folder / "socket"
    data = folder / "data"
    data.mkdir()
    account = ["--user", _ACCOUNT] if os.getuid() == 0 else []
    for path in (folder, data) if account else ():
        owner = pwd.getpwnam(_ACCOUNT)
        os.chown(path, owner.pw_uid, owner.pw_gid)
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"]
    install += [*account, "--auth-root-authentication-method=normal"]
    made = subprocess.run(install, capture_output=True, text=True, cwd=folder)
    assert made.returncode == 0, made.stdout + made.stderr
    command = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket}"]
    command += [f"--port={port}", "--bind-address=127.0.0.1", f"--pid-file={folder}/pid"]
    # Another zone than UTC, and zero dates allowed, as old servers are.
    command += ["--default-time-zone=+05:00", "--sql-mode=", "--innodb-flush-log-at-trx-commit=0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, *account], stdout=log, stderr=log, cwd=folder)
    try:
        _let_in(socket, server, folder / "log")
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _let_in(socket: Path, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for the server, and give the tests' user all rights."""
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            connection = pymysql.connect(unix_socket=str(socket), user="root")
        except pymysql.err.OperationalError:
            time.sleep(0.1)
            continue
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(f"create user {USER}@'127.0.0.1' identified by %s", (PASSWORD,))
            cursor.execute(f"grant all on *.* to {USER}@'127.0.0.1' with grant option")
        return
    raise AssertionError(log.read_text())
