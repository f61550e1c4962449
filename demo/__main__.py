"""A real grocer's upstream systems, run locally.

  python -m demo                     make what is missing, serve until Ctrl-C
  python -m demo -- COMMAND [ARGS…]  the same for as long as COMMAND runs
  python -m demo stream [--speed N]  go on sending events until Ctrl-C, N times faster: to the
                                     brokers of the demo that runs, else to some of its own
  python -m demo make                only make what is missing
  python -m demo postgres URL        load the tills into an empty PostgreSQL database

Everything is kept in demo/.run, or in TARN_DEMO_RUN.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from types import FrameType

from demo.source import report

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    """Run one of the verbs; return the exit code."""
    from demo import making

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    match arguments:
        case []:
            return _serve(making.run_folder())
        case ["--", *command] if command:
            return _run(making.run_folder(), command)
        case ["make"]:
            making.make(making.run_folder())
            return 0
        case ["stream"]:
            return _stream(making.run_folder(), 1)
        case ["stream", "--speed", speed] if re.fullmatch(r"\d*\.?\d+", speed) and float(speed):
            return _stream(making.run_folder(), float(speed))
        case ["postgres", url]:
            return _load_postgres(url)
    print(__doc__, file=sys.stderr)
    return 0 if arguments in (["-h"], ["--help"]) else 2


def _serve(run: Path) -> int:
    from demo import serving

    _make_missing(run)
    stop = Event()
    with serving.upstream_systems(run, any_port=False) as environment:
        _stop_on_signals(stop)
        _print_exports(environment)
        report("serving; Ctrl-C stops")
        stop.wait()
    return 0


def _stream(run: Path, speed: float) -> int:
    from demo.streams import brokers, replay

    _make_missing(run)
    stop = Event()
    with ExitStack() as stack:
        environment = brokers.running(run)
        if environment is None:
            environment = stack.enter_context(brokers.starting(run, any_port=False))()
            _print_exports(environment)
        _stop_on_signals(stop)
        report("streams: sending; Ctrl-C stops")
        try:
            replay.keep_going(run, environment, speed, stop)
        except Exception:
            if brokers.are_there(environment):
                raise
            report("streams: the brokers have ended")
            return 1
    return 0


def _stop_on_signals(stop: Event) -> None:
    for name in SIGNALS:
        signal.signal(name, lambda *_: stop.set())


def _print_exports(environment: dict[str, str]) -> None:
    for variable, value in environment.items():
        print(f"export {variable}={shlex.quote(value)}", flush=True)


def _run(run: Path, command: list[str]) -> int:
    from demo import serving

    _make_missing(run)
    with serving.upstream_systems(run, any_port=True) as environment:
        environment["POS_DATABASE_URL"] = (
            os.environ.get("POS_DATABASE_URL") or environment["POS_DATABASE_URL"]
        )
        return _run_command(command, {**os.environ, **environment})


def _run_command(command: list[str], environment: dict[str, str]) -> int:
    """Run the command and pass signals on to it; return its exit code as a shell would."""
    early: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        if child is None:
            early.append(number)
        elif number != signal.SIGINT or not _in_foreground():
            child.send_signal(number)

    for name in SIGNALS:
        if signal.getsignal(name) is not signal.SIG_IGN:  # nohup's and a shell's & stay in force
            signal.signal(name, pass_on)
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        report(f"{command[0]}: {error.strerror}")
        return 127
    for number in early:
        child.send_signal(number)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _in_foreground() -> bool:
    """Whether a terminal sends its Ctrl-C to us and the command alike."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _make_missing(run: Path) -> None:
    """Make it in a process of its own, which gives the memory back."""
    from demo import making

    if making.missing(run):
        maker = get_context("spawn").Process(target=making.make, args=(run,), daemon=True)
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("demo: could not make the data (see above)")


def _load_postgres(url: str) -> int:
    from adbc_driver_manager import Error

    from demo import tills

    try:
        tills.load_postgres(url)
    except Error as error:
        report(f"postgres: {error}")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
