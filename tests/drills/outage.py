"""Brokers of all kinds fall silent at once, and answer again: streams go on by themselves, and
nothing is lost or doubled."""

import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.drills.streams import BROKERS, COMMAND, Made, Stream, compare
from tests.drills.telling import Drill
from tests.drills.watching import run

_BURSTS = 25
_PATIENCE = 180.0
"""Seconds in which a stream is to have what was sent."""


def drill(seed: int, rounds: int, folder: Path) -> Drill:
    """An outage of so many seconds."""
    told = Drill("outage", seed, rounds)
    with ThreadPoolExecutor(len(BROKERS)) as pool:
        for each in [pool.submit(_fall_silent, told, kind, folder) for kind in BROKERS]:
            each.result()
    return told


def _fall_silent(told: Drill, kind: str, folder: Path) -> None:
    rng, made = random.Random(f"{told.seed} {kind}"), Made()
    with BROKERS[kind](folder) as broker:
        stream = Stream(folder / kind, kind, broker)
        # Some brokers keep messages only for those who have asked for them.
        run(stream, [*COMMAND, "--once"], ())
        log = folder / f"{kind}.log"
        with log.open("w") as said:
            process = subprocess.Popen(
                COMMAND, cwd=stream.folder, env=stream.environment, stdout=said, stderr=said
            )
        try:
            _send(told, stream, made, rng)
            os.kill(broker.process, signal.SIGSTOP)
            time.sleep(told.rounds)
            os.kill(broker.process, signal.SIGCONT)
            told.did[f"outages of {kind}, {told.rounds} s"] += 1
            _send(told, stream, made, rng)
            told.check(f"{kind} goes on", process.poll() is None, log.read_text()[-2000:])
        finally:
            os.kill(broker.process, signal.SIGCONT)
            process.terminate()
            code = process.wait(_PATIENCE)
        told.check(f"{kind} ends well", code == 0, log.read_text()[-2000:])
        compare(told, stream, made)


def _send(told: Drill, stream: Stream, made: Made, rng: random.Random) -> None:
    """Send some, and wait until they have landed."""
    for _ in range(_BURSTS):
        stream.broker.send(made.messages(rng))
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        rows = stream.select("select 1 from {}", "raw_shop.events")
        bad = stream.select("select 1 from {}", "quarantine_shop.events")
        if len(rows) >= len(made.good) and len(bad) >= len(made.bad):
            return
        time.sleep(0.2)
    told.check(f"{stream.kind} lands what was sent", False, f"{len(rows)} of {len(made.good)}")
