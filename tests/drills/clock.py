"""The clock goes back and forth between days: loads, builds, releases and upkeep keep working.

libfaketime gives each command its clock, and the files it made then get times of that clock.
"""

import os
import random
import shutil
import time
from pathlib import Path

from tarn.storage import releases
from tests.drills.kill import unlike_upstream
from tests.drills.reading import contents, shown, wrong
from tests.drills.telling import Drill
from tests.drills.watching import by_clock, files
from tests.engine.library import Library

_DAY = 86_400
_OFFSETS = (-30, -5, -1, 0, 2, 40)
"""Days."""
_POLICY = """\
defaults: {compact_from: 2}
releases: {keep: 3 days, at_least: 2}
vacuum_after: 1 day
"""


def drill(seed: int, rounds: int, folder: Path) -> Drill:
    """So many days, each by another clock."""
    told = Drill("clock", seed, rounds)
    if shutil.which("faketime") is None:
        told.missing = "it needs libfaketime (apt install faketime)"
        return told
    library = Library.founded(folder / "project", seed)
    (library.folder / "storage.yml").write_text(_POLICY)
    known: dict[int, dict[str, tuple[int, int]]] = {}
    for day, offset in enumerate(_clocks(random.Random(seed), rounds), 1):
        library.day(day)
        for command in ("ingest", "build", "maintain"):
            _run(told, library, offset, command)
            _check(told, library, known, f"day {day}, clock {offset:+} days, after {command}")
        print(f"  day {day}, clock {offset:+}: {len(told.faults)} faults", flush=True)
        told.did[f"days by a clock set {offset:+} days"] += 1
        if day > 1 and day % 3 == 0:
            before = max(releases.numbers(library.lake))
            _run(told, library, offset, "release", "rollback")
            now = releases.current(library.lake)
            told.check("a rollback is the current release", bool(now and now.number == before + 1))
            _check(told, library, known, f"day {day}, after rollback", is_newest=False)
            _run(told, library, offset, "release", "rollback")
    return told


def _clocks(chance: random.Random, days: int) -> list[int]:
    """The real clock first, then ahead and back again, then any."""
    return [0, 2, -5, *(chance.choice(_OFFSETS) for _ in range(days))][:days]


def _run(told: Drill, library: Library, offset: int, *command: str) -> None:
    root = Path(library.lake.root)
    before = {path: (root / path).stat().st_mtime for path in files(root)}
    done = library.command(*by_clock(offset * _DAY), "tarn", *command)
    said = f"{' '.join(command)}, {offset:+} days: {(done.stdout + done.stderr)[-2000:]}"
    told.check("a command ends well by any clock", not done.returncode, said)
    if not offset:
        return
    for path in files(root):
        status = (root / path).stat()
        if before.get(path) != status.st_mtime:
            then = min(status.st_mtime, time.time()) + offset * _DAY
            os.utime(root / path, (then, then))


def _check(
    told: Drill,
    library: Library,
    known: dict[int, dict[str, tuple[int, int]]],
    when: str,
    is_newest: bool = True,
) -> None:
    lake = library.lake
    for release in releases.releases(lake):
        try:
            rows = {name: pin.rows for name, pin in release.tables.items()}
            with shown(lake, release) as connection:
                faults = wrong(connection, rows)
            found = contents(lake, release)
        except Exception as error:
            faults, found = [f"{type(error).__name__}: {str(error)[:300]}"], {}
        if found != known.setdefault(release.number, found):
            faults.append("its rows have changed")
        told.check(
            "a kept release is whole, as it was", not faults, f"{when}: {release.number}: {faults}"
        )
    now = releases.current(lake)
    if now is None or not is_newest or when.endswith("ingest"):
        return
    with shown(lake, now) as connection:
        faults = unlike_upstream(connection, library)
    told.check("the release has the upstream's rows", not faults, f"{when}: {'; '.join(faults)}")
