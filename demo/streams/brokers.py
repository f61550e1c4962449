"""The streams' brokers, each in a process of its own: they start side by side, and end with us."""

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from demo import making

BROKERS = {
    "kafka": "WEB_SHOP_KAFKA",
    "kinesis": "PAYMENTS_KINESIS_URL",
    "pubsub": "SIGN_UPS_PUBSUB",
    "mqtt": "VANS_MQTT",
}
"""Modules, and the variable that gives the broker's address."""
PASSWORD, PASSWORD_OF = "VANS_MQTT_PASSWORD", "vans"
_RUNNING = "brokers.json"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Environment = dict[str, str]


@contextmanager
def starting(
    run: Path, any_port: bool, is_full: bool = True
) -> Iterator[Callable[[], Environment]]:
    """Run the brokers while the context lasts. What is given waits until all hold the burst and
    can be reached, and tells by which variables."""
    password = making.token(run, PASSWORD_OF)
    with ExitStack() as stack:
        pipes = {
            variable: stack.enter_context(_process(kind, run, is_full, any_port))
            for kind, variable in BROKERS.items()
        }

        def started() -> Environment:
            addresses = {variable: _address(pipe) for variable, pipe in pipes.items()}
            environment = {**addresses, PASSWORD: password}
            stack.enter_context(_known(run, environment))
            return environment

        yield started


def running(run: Path) -> Environment | None:
    """How brokers that somebody else runs are reached, if there are any."""
    with suppress(OSError):
        environment: Environment = json.loads((run / _RUNNING).read_text())
        host, _, port = environment[BROKERS["mqtt"]].rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        return environment
    return None


@contextmanager
def _known(run: Path, environment: Environment) -> Iterator[None]:
    """Let others find the brokers; of several demos, those of the last."""
    file, text = run / _RUNNING, json.dumps(environment)
    making.write_private(file, text)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if file.read_text() == text:
                file.unlink()


@contextmanager
def _process(kind: str, run: Path, is_full: bool, any_port: bool) -> Iterator[Connection]:
    """Run one broker in a process, which ends when the pipe does, however we end."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, kind, run, is_full, any_port))
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


def _serve(pipe: Connection, kind: str, run: Path, is_full: bool, any_port: bool) -> None:
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)  # our parent is told, and tells us
    with import_module(f"demo.streams.{kind}").serve(run, is_full, any_port) as address:
        pipe.send(address)
        with suppress(EOFError, OSError):
            pipe.recv()
