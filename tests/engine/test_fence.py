"""Several application transactions in one commit, and the fence: two writers never both win."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from tarn.storage.lake import Lake
from tarn.storage.writer import OvertakenError, write

pytestmark = pytest.mark.everywhere

NAME = "raw_shop.orders"
WRITERS, COMMITS = 3, 25
RACE = f"""
import sys
import pyarrow as pa
from tarn.storage.lake import Lake
from tarn.storage.writer import OvertakenError, write
lake, me, won = Lake(sys.argv[1]), sys.argv[2], 0
while True:
    table = lake.table({NAME!r})
    at = table.transaction_version("p-0") if table else None
    if (at or 0) >= {COMMITS}:
        break
    new = (at or 0) + 1
    rows = pa.table({{"number": [new], "writer": [me]}})
    try:
        write(lake, {NAME!r}, rows, mode="append", transactions={{"p-0": new}}, fence={{"p-0": at}})
    except OvertakenError:
        continue
    won += 1
print(won)
"""


def rows(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int64())})


def test_a_commit_moves_all_its_applications_or_none(lake: Lake) -> None:
    fence = {"p-0": None, "p-1": None}
    write(lake, NAME, rows(1), mode="append", transactions={"p-0": 5, "p-1": 7}, fence=fence)
    with pytest.raises(OvertakenError, match="p-1: it is at 7, not 6"):
        write(
            lake,
            NAME,
            rows(2),
            mode="append",
            transactions={"p-0": 6, "p-1": 8},
            fence={"p-0": 5, "p-1": 6},
        )
    table = lake.table(NAME)
    assert table is not None
    assert [table.transaction_version(f"p-{i}") for i in (0, 1)] == [5, 7]
    assert table.version() == 0


def test_a_position_moves_without_rows(lake: Lake) -> None:
    write(lake, NAME, rows(1), mode="append", transactions={"p-0": 5}, fence={"p-0": None})
    write(lake, NAME, rows(), mode="append", transactions={"p-0": 9}, fence={"p-0": 5})
    table = lake.table(NAME)
    assert table is not None
    assert (table.version(), table.transaction_version("p-0")) == (1, 9)


@pytest.mark.on_disk
def test_of_processes_that_write_the_same_number_one_wins(lake: Lake) -> None:
    def race(writer: int) -> int:
        command = [sys.executable, "-c", RACE, lake.root, str(writer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    with ThreadPoolExecutor(WRITERS) as pool:
        won = list(pool.map(race, range(WRITERS)))
    table = lake.table(NAME)
    assert table is not None
    found = sorted(table.to_pyarrow_table()["number"].to_pylist())
    assert found == list(range(1, COMMITS + 1))
    assert sum(won) == COMMITS
