"""The consumer's parts: positions of any size, keys that are known, files that stay few."""

from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarn.ingestion.landed import Desk, Landed
from tarn.ingestion.streams import hashes, known, positions
from tarn.ingestion.streams.absence import Absence
from tarn.ingestion.streams.hashes import IN_MEMORY
from tarn.ingestion.streams.known import MOST_HASHES, Known
from tarn.ingestion.streams.tidying import EVERY, Tidier
from tarn.storage.lake import Lake
from tarn.storage.writer import OvertakenError, write

NAME = "raw_shop.orders"
_NATURALS = st.integers(0, 2**200) | st.sampled_from([2**63 - 1, 2**63, 2**126])
START = datetime(2026, 1, 1)
_MINUTES_KNOWN = 10


def rows(keys: list[str], at: datetime) -> pa.Table:
    loaded = pa.array([at] * len(keys), pa.timestamp("us"))
    return pa.table({"key": pa.array(keys, pa.string()), "_loaded_at": loaded})


def micros(at: datetime) -> int:
    return (at - datetime(1970, 1, 1)) // timedelta(microseconds=1)


@given(_NATURALS, _NATURALS)
def test_a_position_of_any_size_is_read_as_it_was_written(before: int, after: int) -> None:
    first = positions.numbers(before, ())
    second = positions.numbers(after, first)
    assert positions.position(first) == before
    assert positions.position(second) == after
    assert len(second) >= len(first)
    assert all(0 <= number < 2**63 for number in second)


@settings(max_examples=20, deadline=None)
@given(st.lists(_NATURALS, min_size=2, max_size=5))
def test_positions_survive_the_lake_and_fence_others_out(reached: list[int]) -> None:
    with TemporaryDirectory() as root:
        lake, part = Lake(root), "shard-1"
        for each in reached:
            held = positions.held(lake.table(NAME), part)
            write(
                lake,
                NAME,
                rows(["a"], START),
                mode="append",
                transactions=positions.transactions({part: positions.numbers(each, held)}),
                fence=positions.fence({part: held}),
            )
        now = positions.held(lake.table(NAME), part)
        assert positions.position(now) == reached[-1]
        for wrong in ((), (*now, 1), (now[0] + 1, *now[1:])):
            fence = positions.fence({part: wrong})
            with pytest.raises(OvertakenError):
                write(lake, NAME, rows(["b"], START), mode="append", transactions={}, fence=fence)


@pytest.mark.parametrize(
    ("most", "in_memory"),
    [(MOST_HASHES, IN_MEMORY), (MOST_HASHES, 1), (3, IN_MEMORY)],
    ids=["memory", "disk", "lake"],
)
@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.lists(st.sampled_from("abcdefgh"), max_size=6)),
        max_size=6,
    )
)
def test_of_the_same_key_only_the_first_within_the_time_is_kept(
    most: int, in_memory: int, commits: list[tuple[int, list[str]]]
) -> None:
    """As a model says that remembers everything, with restarts, and with too little room."""
    model: dict[str, datetime] = {}
    within = timedelta(minutes=_MINUTES_KNOWN)
    with TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patched:
        patched.setattr(known, "MOST_HASHES", most)
        patched.setattr(hashes, "IN_MEMORY", in_memory)
        desk = Desk(Lake(root), Path(root))
        keys = Known(desk, NAME, ["key"], within, lasting=False)
        at = START
        for minutes, batch in commits:
            at += timedelta(minutes=minutes, microseconds=1)
            if minutes % 2:
                keys = Known(desk, NAME, ["key"], within, lasting=False)
                keys.fill(micros(at))
            expected = []
            for key in batch:
                if key not in model or model[key] < at - within:
                    expected.append(key)
                    model[key] = at
            met = keys.meet(pa.record_batch({"key": pa.array(batch, pa.string())}), micros(at))
            kept = [batch[i] for i in met.fresh.to_pylist()]
            assert kept == expected
            write(desk.lake, NAME, rows(kept, at), mode="append")
            keys.add(met.hashes, micros(at))
        desk.close()


def test_two_keys_of_one_hash_are_two_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(Lake(str(tmp_path)), tmp_path)
    monkeypatch.setattr(Known, "_hash", "0::ubigint")
    keys = Known(desk, NAME, ["key"], timedelta(hours=1), lasting=False)
    for minute, (batch, expected) in enumerate(
        [("aba", "ab"), ("bca", "c"), ("cdd", "d")], start=1
    ):
        at = START + timedelta(minutes=minute)
        met = keys.meet(pa.record_batch({"key": pa.array(list(batch))}), micros(at))
        kept = [batch[i] for i in met.fresh.to_pylist()]
        assert kept == list(expected)
        write(desk.lake, NAME, rows(kept, at), mode="append")
        keys.add(met.hashes, micros(at))
    desk.close()


def test_a_column_that_small_commits_lack_is_gone_after_many(tmp_path: Path) -> None:
    desk = Desk(Lake(str(tmp_path)), tmp_path)
    some = pa.table({"key": ["a"] * 4, "city": ["Bath", "Bath", "Bath", None]})
    write(desk.lake, NAME, some, mode="append")
    absence, landed = Absence(), Landed(desk, NAME)
    alike, other = pa.record_batch({"key": ["a"] * 5}), pa.record_batch({"city": ["Bath"] * 5})
    assert not any(absence.after(alike, landed) for _ in range(10))
    assert not absence.after(pa.record_batch({"key": ["a"], "city": ["Bath"]}), landed)
    assert not any(absence.after(alike, landed) for _ in range(10))
    assert {"city"} in [absence.after(alike, landed) for _ in range(20)]
    # None lacks the key: a few without it are enough.
    assert absence.after(other, landed) == {"key"}
    assert not absence.after(some.to_batches()[0], landed)
    desk.close()


def test_small_files_become_few_while_it_runs(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    tidier = Tidier(lake)
    commits = 3 * EVERY
    for i in range(commits):
        write(lake, NAME, rows([str(i)], START), mode="append", transactions={"p": i}, fence={})
        tidier.committed(NAME)
    tidier.close()
    table = lake.table(NAME)
    assert table is not None
    assert len(table.file_uris()) < commits / 2
    found = table.to_pyarrow_table()["key"].to_pylist()
    assert sorted(found) == sorted(map(str, range(commits)))
