"""A private PostgreSQL for tests: its own folder, its own port, gone afterwards."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

USER = "tarn"
PASSWORD = "p@ss/word"  # noqa: S105
"""Characters that an address must escape."""
ESCAPED = "p%40ss%2Fword"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of an empty PostgreSQL server; `database` makes a database in it."""
    if _binaries() is None:
        pytest.skip("no PostgreSQL server: install the package postgresql")
    with postgres_server() as server:
        yield server


@contextmanager
def postgres_server() -> Iterator[str]:
    """Address of an empty PostgreSQL server, while it runs."""
    binaries = _binaries()
    assert binaries is not None
    with (
        TemporaryDirectory(prefix="tarn-postgres-") as folder,
        _running(binaries, Path(folder)) as port,
    ):
        yield f"postgresql://{USER}:{ESCAPED}@127.0.0.1:{port}"


def database(server: str, name: str) -> str:
    """Address of a new database."""
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
    return f"{server}/{name}"


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@contextmanager
def _running(binaries: Path, folder: Path) -> Iterator[int]:
    port = _free_port()
    data, secret = folder / "data", folder / "password"
    secret.write_text(PASSWORD)
    data.mkdir()
    for path in (folder, data, secret):
        _give_away(path)
    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    initdb: list[str | Path] = [
        binaries / "initdb",
        "-D",
        data,
        "-U",
        USER,
        "-A",
        "scram-sha-256",
        "-E",
        "UTF8",
    ]
    _run([*initdb, "--no-sync", f"--pwfile={secret}", "--no-locale"])
    _run([binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", settings, "start"])
    try:
        yield port
    finally:
        _run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"])


def _run(command: list[str | Path]) -> None:
    """As another user where the tests are run by root, whom PostgreSQL refuses."""
    words = [str(word) for word in command]
    if os.getuid() == 0:
        words = ["runuser", "-u", "postgres", "--", *words]
    done = subprocess.run(words, capture_output=True, text=True, cwd="/")
    # pg_ctl's server keeps the pipes open; what matters is in the log.
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"


def _give_away(path: Path) -> None:
    if os.getuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(path, account.pw_uid, account.pw_gid)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
