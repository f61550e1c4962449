"""kill -9 of `tarn stream` while events come, by right and wrong clocks, for each kind of broker:
nothing lost or doubled."""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from time import sleep

from tests.drills.streams import BROKERS, COMMAND, Made, Stream, compare
from tests.drills.telling import Drill
from tests.drills.watching import Kill, Moment, by_clock, run

_MOMENTS = (
    Moment("rows are written", r"raw_shop/events/.*\.parquet"),
    Moment("rows are committed", r"raw_shop/events/_delta_log/\d+\.json"),
    Moment("bad messages are committed", r"quarantine_shop/events/_delta_log/\d+\.json"),
)
_ANY_TIME = 0.3
"""Share of kills at no particular moment."""
_LATEST = 20.0
_LEASES, _LEASE = 6, 10.0
_PAUSE = 0.05
_CLOCKS = (0, 0, 600, -600)
"""Seconds by which a machine's clock is wrong."""


def drill(seed: int, rounds: int, folder: Path) -> Drill:
    """So many kills, in turns of the kinds."""
    told = Drill("stream", seed, rounds)
    for number, (kind, broker) in enumerate(BROKERS.items()):
        kills = rounds // len(BROKERS) + (number < rounds % len(BROKERS))
        with broker(folder) as running:
            stream = Stream(folder / kind, kind, running)
            _kill(told, stream, random.Random(seed + number), kills)
    return told


def _kill(told: Drill, stream: Stream, rng: random.Random, kills: int) -> None:
    # Some brokers keep messages only for those who have asked for them.
    run(stream, [*COMMAND, "--once"], ())
    made, stop = Made(), Event()
    sender = Thread(target=_sent, args=(made, stream.broker.send, rng, stop))
    sender.start()
    try:
        while told.did[f"kills of {stream.kind}"] < kills and not told.faults:
            at = None if rng.random() < _ANY_TIME else rng.choice(_MOMENTS)
            after = rng.uniform(1.5, 4) if at is None else rng.uniform(0, 0.05)
            kill = Kill(at, rng.randrange(1, 4), after, _LATEST)
            clock = rng.choice(_CLOCKS if shutil.which("faketime") else (0,))
            ran = run(stream, [*by_clock(clock), *COMMAND], _MOMENTS, kill)
            told.did[f"kills of {stream.kind}"] += ran.killed
            told.did["wrong clocks"] += bool(clock)
            if not ran.killed:
                told.fault(f"{stream.kind} ended by itself: {ran.output[-2000:]}")
    finally:
        stop.set()
        sender.join()
    for _ in range(_LEASES):
        ran = run(stream, [*COMMAND, "--once"], ())
        told.check(f"{stream.kind} lands what is left", ran.returncode == 0, ran.output[-2000:])
        if len(stream.select("select 1 from {}", "raw_shop.events")) >= len(made.good):
            break
        # What was leased to the process that was killed comes again when the lease is over.
        sleep(_LEASE)
    told.did["messages"] += made.sent
    compare(told, stream, made)


def _sent(
    made: Made, send: Callable[[Sequence[bytes]], None], rng: random.Random, stop: Event
) -> None:
    while not stop.is_set():
        send(made.messages(rng))
        sleep(_PAUSE)
