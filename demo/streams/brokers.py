"""The streams' brokers, each in a process of its own: they start side by side, and end with us."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

from demo import making

BROKERS = {
    "kafka": "WEB_SHOP_KAFKA",
    "kinesis": "PAYMENTS_KINESIS_URL",
    "pubsub": "PUBSUB_EMULATOR_HOST",
    "mqtt": "VANS_MQTT_URL",
}
"""Modules, and the variable that gives the broker's address."""
PASSWORD, PASSWORD_OF = "VANS_MQTT_PASSWORD", "vans"
_RUNNING = "brokers.{}.json"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Environment = dict[str, str]


@contextmanager
def starting(run: Path, any_port: bool) -> Iterator[Callable[[], Environment]]:
    """Run the brokers while the context lasts. What is given waits until all hold the burst and
    can be reached, and tells by which variables."""
    password = making.token(run, PASSWORD_OF)
    with ExitStack() as stack:
        pipes = {
            variable: stack.enter_context(_process(kind, run, any_port))
            for kind, variable in BROKERS.items()
        }

        def started() -> Environment:
            addresses = {variable: _address(pipe) for variable, pipe in pipes.items()}
            environment = {**addresses, PASSWORD: password}
            stack.enter_context(_known(run, environment))
            return environment

        yield started


def running(run: Path) -> Environment | None:
    """How brokers that somebody else runs are reached, if there are any: the last started."""
    files = run.glob(_RUNNING.format("*"))
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        environment: Environment = json.loads(file.read_text())
        if are_there(environment):
            return environment
    return None


def are_there(environment: Environment) -> bool:
    """Whether brokers can be reached, by the one that ends first."""
    url = urlsplit(environment[BROKERS["mqtt"]])
    try:
        socket.create_connection((url.hostname or "", url.port or 0), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def _known(run: Path, environment: Environment) -> Iterator[None]:
    """Let others find the brokers."""
    file = run / _RUNNING.format(os.getpid())
    making.write_private(file, json.dumps(environment))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def _process(kind: str, run: Path, any_port: bool) -> Iterator[Connection]:
    """Run one broker in a process, which ends when the pipe does, however we end."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, kind, run, any_port))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()  # in memory only: it has nothing to save
        process.join()
        ours.close()


def _address(pipe: Connection) -> str:
    try:
        return str(pipe.recv())
    except EOFError:
        raise SystemExit("demo: a broker did not start (see above)") from None


def _serve(pipe: Connection, kind: str, run: Path, any_port: bool) -> None:
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)  # our parent is told, and tells us
    with import_module(f"demo.streams.{kind}").serve(run, any_port) as address:
        pipe.send(address)
        with suppress(EOFError, OSError):
            pipe.recv()
