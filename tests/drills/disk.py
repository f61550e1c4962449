"""A full disk, page by page, and a lake that is read-only: clear words, and nothing is lost.

The lake lies on a file system of its own in memory, in a mount namespace of this process alone.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tarn.errors import TarnError
from tarn.storage import releases
from tarn.storage.lake import Lake
from tarn.storage.writer import write
from tests.drills.kill import unlike_upstream
from tests.drills.reading import contents, shown, wrong
from tests.drills.telling import Drill
from tests.drills.watching import age
from tests.engine.library import Library

_PAGE = 4096
_SIZE = 64 * 1024 * 1024
_ROWS = 1000
_ROUNDS_A_DAY = 12
_MOST_PAGES = 24
"""Below so many free pages a command is likely to fail."""
_TABLE = "raw_full.rows"
_NAMESPACES = (
    ["unshare", "--mount", "--map-root-user"],
    ["unshare", "--mount"],
    ["sudo", "-n", "unshare", "--mount"],
)
_COMMANDS = ("ingest", "build", "maintain")
_REFUSED = ("Traceback", "obstore.exceptions", "duckdb.duckdb", "report this as a bug")
_READS = (
    ["query", "-f", "csv", "select count(*) from marts.fct_loans"],
    ["release", "list"],
    ["release", "show"],
    ["table", "show", "marts.fct_loans"],
)
_WRITES = (["ingest"], ["build"], ["release", "rollback"], ["maintain"])


def drill(seed: int, rounds: int, folder: Path) -> Drill:
    """As many amounts of free space, from none to what is enough; then read-only."""
    told = Drill("disk", seed, rounds)
    namespace = next((each for each in _NAMESPACES if _may_mount(each)), None)
    if namespace is None:
        told.missing = "it needs `unshare --mount` and the right to mount a tmpfs in it"
        return told
    command = [*namespace, sys.executable, "-m", "tests.drills.disk", str(seed), str(rounds)]
    with subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdout is not None
        last = ""
        for line in inside.stdout:
            last = line.rstrip()
            print(f"{last}\n" * (not last.startswith("{")), end="", flush=True)
    if inside.returncode:
        told.fault(f"the drill itself died: {last}")
        return told
    found = json.loads(last)
    told.did.update(found["did"])
    told.checked.update(found["checked"])
    told.faults += found["faults"]
    return told


def _may_mount(namespace: list[str]) -> bool:
    if shutil.which(namespace[0]) is None:
        return False
    test = [*namespace, "sh", "-c", "mount -t tmpfs none /mnt && mount -o remount,bind,ro /mnt"]
    return subprocess.run(test, capture_output=True).returncode == 0


def main(seed: int, rounds: int, folder: Path) -> None:
    """Inside the namespace."""
    told = Drill("disk", seed, rounds)
    library = Library.founded(folder / "project", seed)
    root = Path(library.lake.root)
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(root)], check=True)
    (library.folder / "storage.yml").write_text("defaults: {compact_from: 2}\n")
    os.chdir(library.folder)
    for pages in range(rounds):
        _write(told, library.lake, pages)
    shutil.rmtree(root / "raw_full")
    print(f"  {rounds} writes done, {len(told.faults)} faults", flush=True)
    library.day(1)
    for command in _COMMANDS:
        library.tarn(command)
    chance = random.Random(seed)
    days = max(1, rounds // _ROUNDS_A_DAY)
    for day in range(2, 2 + days):
        library.day(day, loans=2000)
        for command in _COMMANDS:
            if command == "maintain":
                age(root, 2)
            for pages in sorted(chance.sample(range(_MOST_PAGES), days)):
                _command(told, library, command, pages)
            done = library.command("tarn", command)
            told.check("with room again, it is done", not done.returncode, done.stderr[-2000:])
        _check(told, library)
        print(f"  day {day} done, {len(told.faults)} faults", flush=True)
    _read_only(told, library)
    counts = {"did": dict(told.did), "checked": dict(told.checked)}
    print(json.dumps({**counts, "faults": told.faults}))


def _write(told: Drill, lake: Lake, pages: int) -> None:
    """One append with little room, where the commit is followed by a checkpoint, and again."""
    while (table := lake.table(_TABLE)) is None or table.version() % 10 != 8:
        write(lake, _TABLE, _batch(table.version() + 1 if table else 0), mode="append")
    before = table.version()
    with _full(Path(lake.root), pages):
        try:
            write(lake, _TABLE, _batch(before + 1), mode="append")
        except TarnError as error:
            fails = str(error)
            clear = "disk is full" in fails and "→" in fails
            told.check("a full disk is told as that", clear, fails)
            cause = str(error.__cause__)
        else:
            fails = cause = ""
        happened = _happened(lake, before, cause)
    told.did[f"writes with {'too little' if fails else 'enough'} room: {happened}"] += 1
    table = lake.table(_TABLE)
    assert table is not None
    unchanged = table.version() == before
    told.check("what is told to have failed left no trace", bool(fails) == unchanged, happened)
    if fails:
        write(lake, _TABLE, _batch(before + 1), mode="append")
    numbers = _numbers(lake)
    expected = list(range(_ROWS * (before + 2)))
    told.check("each row is there once", numbers == expected, f"{pages} pages free")


def _happened(lake: Lake, before: int, cause: str) -> str:
    log = Path(lake.root, _TABLE.replace(".", "/"), "_delta_log")
    if not (log / f"{before + 1:020}.json").exists():
        return "failed at the data" if "parquet" in cause else "failed at the commit"
    checkpoint = (log / f"{before + 1:020}.checkpoint.parquet").exists()
    return "done, with checkpoint" if checkpoint else "done, no room for the checkpoint"


def _batch(number: int) -> pa.Table:
    chance = random.Random(number)
    numbers = range(_ROWS * number, _ROWS * (number + 1))
    return pa.table({"number": list(numbers), "text": [chance.randbytes(6).hex() for _ in numbers]})


def _numbers(lake: Lake) -> list[int]:
    table = lake.table(_TABLE)
    assert table is not None
    paths = (uri.removeprefix("file://") for uri in table.file_uris())
    return sorted(n for path in paths for n in pq.read_table(path)["number"].to_pylist())


def _command(told: Drill, library: Library, command: str, pages: int) -> None:
    """A command with little room: it ends well, or says what is wrong and breaks nothing."""
    lake = library.lake
    before = releases.current(lake)
    assert before is not None
    was = contents(lake, before)
    with _full(Path(lake.root), pages):
        done = library.command("tarn", command)
        said = done.stdout + done.stderr
        _check_told(told, f"{command} with {pages} pages free", done.returncode, said, "full")
        told.did[f"{command} {'refused' if done.returncode else 'done'}"] += 1
        now = releases.current(lake)
        assert now is not None
        # Upkeep that fails at one table goes on with the others, and changes no rows.
        same = contents(lake, now) == was if command == "maintain" else now == before
        unseen = not done.returncode or same
        told.check("a failed command shows readers nothing new", unseen, command)
        with shown(lake, now) as connection:
            faults = wrong(connection, {name: pin.rows for name, pin in now.tables.items()})
        told.check("readers see a whole release", not faults, f"{command}: {faults}")
    told.check("the release before is as it was", contents(lake, before) == was, command)


def _check_told(told: Drill, doing: str, returncode: int, said: str, word: str) -> None:
    if not returncode:
        return
    clear = word in said and not any(bad in said for bad in _REFUSED)
    told.check("a failure is told in clear words", clear, f"{doing}: {said[-3000:]}")


def _check(told: Drill, library: Library) -> None:
    release = releases.current(library.lake)
    assert release is not None
    with shown(library.lake, release) as connection:
        faults = wrong(connection, {name: pin.rows for name, pin in release.tables.items()})
        faults += unlike_upstream(connection, library)
    told.check("in the end nothing is lost", not faults, "; ".join(faults))


def _read_only(told: Drill, library: Library) -> None:
    """Readers go on, writers say it."""
    root = library.lake.root
    library.day(27)
    library.tarn("ingest")
    library.day(28)
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
    try:
        for read in _READS:
            done = library.command("tarn", *read)
            told.did["reads of a read-only lake"] += 1
            told.check("a read-only lake is read", not done.returncode, f"{read}: {done.stderr}")
        for change in _WRITES:
            done = library.command("tarn", *change)
            told.did["writes to a read-only lake"] += 1
            said = f"{' '.join(change)}: {done.stdout}{done.stderr}"
            told.check("a read-only lake is not written", bool(done.returncode), said)
            _check_told(told, " ".join(change), done.returncode, said, "read-only")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", root], check=True)
    for command in _COMMANDS:
        done = library.command("tarn", command)
        told.check("writable again, it is done", not done.returncode, done.stderr[-2000:])
    _check(told, library)


@contextmanager
def _full(root: Path, pages: int) -> Iterator[None]:
    """Leave so many pages of the disk free."""
    ballast = root / "ballast"
    disk = os.statvfs(root)
    size = disk.f_bavail * disk.f_frsize - pages * _PAGE
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
    try:
        yield
    finally:
        ballast.unlink()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
