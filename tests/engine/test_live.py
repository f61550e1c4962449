"""Operational views: a release with its streams as they are now."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from deltalake import CommitProperties

from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage import catalog, releases, views
from tarn.storage.duck import prepare
from tarn.storage.lake import Lake
from tarn.storage.live import Live, live, write
from tarn.storage.releases import Pin
from tarn.storage.writer import UPKEEP
from tarn.storage.writer import write as write_rows
from tests.engine.conftest import run
from tests.engine.test_dbt import Project

MODELS = {
    "models/stream.yml": """
        sources:
          - {name: shop, schema: raw_shop, tables: [{name: events}]}
        """,
    "models/stg_events.sql": """{{ config(materialized='view', schema='staging') }}
        select event_id, amount from {{ source('shop', 'events') }}""",
    "models/fct_events.sql": "select * from {{ ref('stg_events') }}",
    "models/rpt_events.sql": """{{ config(materialized='view') }}
        select (select count(*) from {{ ref('stg_events') }}) as fresh,
            (select count(*) from {{ ref('fct_events') }}) as built""",
}
STAGING = "select event_id, amount from raw_shop.events"
OUTPUT = "select count(*) as events, any_value(total) as total from staging.events, marts.totals"


def append(lake: Lake, name: str, first: int, rows: int = 1, **more: Sequence[object]) -> None:
    """Events as a stream's consumer writes them."""
    offsets = range(first, first + rows)
    columns = {
        "event_id": [str(offset) for offset in offsets],
        "amount": [float(offset) for offset in offsets],
        **more,
        "_partition": ["0"] * rows,
        "_offset": list(offsets),
        "_sent_at": pa.array([0] * rows, pa.timestamp("us")),
    }
    write_rows(lake, name, pa.table(columns), mode="append", evolve=bool(more))


def replace(lake: Lake, name: str, **columns: Sequence[object]) -> None:
    write_rows(lake, name, pa.table(columns), mode="replace")


def publish(lake: Lake) -> None:
    """Let readers see every table as it is now."""
    tables = {name: lake.table(name) for name in lake.names()}
    pins = {name: Pin.of(table) for name, table in tables.items() if table}
    releases.publish(lake, pins, releases.current(lake), {})


@pytest.fixture
def shop(lake: Lake) -> Lake:
    """A lake with a stream, a table that is loaded, a mart and views over them, released."""
    append(lake, "raw_shop.events", 0, 2)
    replace(lake, "raw_till.receipts", receipt_id=[1])
    replace(lake, "marts.totals", total=[7])
    views.remember(lake, "outputs.rpt_events", OUTPUT)
    views.remember(lake, "staging.events", STAGING)
    publish(lake)
    return lake


def ask(source: Live | Lake, sql: str) -> list[tuple[object, ...]]:
    with live(source) if isinstance(source, Lake) else source.cursor() as cursor:
        return cursor.execute(sql).fetchall()


@pytest.mark.everywhere
def test_a_view_over_a_stream_is_as_fresh_as_its_last_commit(shop: Lake) -> None:
    seen = Live(shop)
    assert seen.refresh()
    assert ask(seen, "from outputs.rpt_events") == [(2, 7)]

    append(shop, "raw_shop.events", 2, 3)
    replace(shop, "marts.totals", total=[8])
    replace(shop, "raw_till.receipts", receipt_id=[1, 2])
    assert ask(seen, "from outputs.rpt_events") == [(2, 7)]
    assert seen.refresh()
    # Tables that no stream writes are as the release holds them, until there is another.
    assert ask(seen, "from outputs.rpt_events") == [(5, 7)]
    assert ask(seen, "select count(*) from raw_till.receipts") == [(1,)]
    assert not seen.refresh()
    assert ask(shop, "from outputs.rpt_events") == [(5, 7)]

    publish(shop)
    assert seen.refresh()
    assert ask(seen, "from outputs.rpt_events") == [(5, 8)]
    assert ask(seen, "select count(*) from raw_till.receipts") == [(2,)]


def test_readers_of_the_release_see_none_of_it(
    shop: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dbt_project.yml").touch()
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    append(shop, "raw_shop.events", 2)
    assert ask(shop, "select count(*) from raw_shop.events") == [(3,)]
    with catalog.connect() as released:
        assert released.execute("select count(*) from raw_shop.events").fetchall() == [(2,)]


def test_all_views_of_one_refresh_are_of_one_state(shop: Lake) -> None:
    views.remember(shop, "staging.refunds", "select event_id from raw_shop.refunds")
    seen = Live(shop)
    with pytest.raises(duckdb.Error, match=r"staging\.refunds.* refunds does not exist"):
        ask(seen, "from staging.refunds")

    append(shop, "raw_shop.refunds", 0)
    append(shop, "raw_shop.events", 2)
    assert seen.refresh()
    both = "select (select count(*) from staging.refunds), (select count(*) from staging.events)"
    assert ask(seen, both) == [(1, 3)]
    append(shop, "raw_shop.refunds", 1)
    append(shop, "raw_shop.events", 3)
    assert ask(seen, both) == [(1, 3)]
    assert seen.refresh()
    assert ask(seen, both) == [(2, 4)]
    assert {name: at.version for name, at in seen.streams.items()} == {
        "raw_shop.events": 2,
        "raw_shop.refunds": 1,
    }


def test_a_column_that_comes_is_seen_by_views_over_it(shop: Lake) -> None:
    views.remember(shop, "staging.all_events", "select * from raw_shop.events")
    seen = Live(shop)
    assert "place" not in columns(seen)
    append(shop, "raw_shop.events", 2, place=["here"])
    assert seen.refresh()
    assert "place" in columns(seen)
    assert ask(seen, "from outputs.rpt_events") == [(3, 7)]


def columns(seen: Live) -> list[str]:
    return [str(row[0]) for row in ask(seen, "describe staging.all_events")]


def test_cursors_go_on_while_views_move(shop: Lake) -> None:
    seen = Live(shop)
    seen.refresh()

    def count(_: int) -> int:
        with seen.cursor() as cursor:
            sql = "select count(*), max(cast(event_id as int)) + 1 from staging.events"
            (row,) = cursor.execute(sql).fetchall()
        assert row[0] == row[1]
        return int(row[0])

    with ThreadPoolExecutor(4) as pool:
        counts = pool.map(count, range(200))
        for offset in range(2, 42):
            append(shop, "raw_shop.events", offset)
            seen.refresh()
        assert set(counts) <= set(range(2, 43))
    assert count(0) == 42


def test_the_engines_own_records_are_read_at_their_latest(shop: Lake) -> None:
    replace(shop, "tarn.loads", load_id=["a"])
    seen = Live(shop)
    assert ask(seen, "from tarn.loads") == [("a",)]
    replace(shop, "tarn.loads", load_id=["b"])
    seen.refresh()
    assert ask(seen, "from tarn.loads") == [("b",)]
    assert set(seen.streams) == {"raw_shop.events"}


def test_a_stream_that_cannot_be_read_says_so_and_leaves_the_others(shop: Lake) -> None:
    append(shop, "raw_shop.refunds", 0)
    seen = Live(shop)
    assert ask(seen, "select count(*) from raw_shop.refunds") == [(1,)]
    log = Path(shop.root, "raw_shop/refunds/_delta_log")
    (log / f"{1:020d}.json").write_text("{oops\n")
    append(shop, "raw_shop.events", 2)
    for _ in range(2):
        seen.refresh()
        assert ask(seen, "from outputs.rpt_events") == [(3, 7)]
        with pytest.raises(Exception, match=r"raw_shop\.refunds"):
            ask(seen, "from raw_shop.refunds")


def test_there_is_nothing_to_see_before_the_first_release(lake: Lake) -> None:
    append(lake, "raw_shop.events", 0)
    with pytest.raises(TarnError, match="no release"):
        live(lake)


def test_many_small_files_are_read_like_few(shop: Lake) -> None:
    seen = Live(shop)
    for offset in range(2, 80):
        append(shop, "raw_shop.events", offset)
    seen.refresh()
    assert ask(seen, "select count(*) from staging.events") == [(80,)]
    (sql,) = ask(seen, "select sql from duckdb_views() where view_name = 'events'"
                       " and schema_name = 'raw_shop'")  # fmt: skip
    assert "read_parquet" in str(sql)


def test_upkeep_is_no_sign_of_life(shop: Lake) -> None:
    seen = Live(shop)
    seen.refresh()
    before = seen.streams["raw_shop.events"]
    append(shop, "raw_shop.events", 2)
    moved = CommitProperties(custom_metadata={UPKEEP: "compact"})
    appended = shop.table("raw_shop.events")
    assert appended
    appended_at = appended.history(1)[0]["timestamp"]
    appended.optimize.compact(commit_properties=moved)
    seen.refresh()
    compacted = seen.streams["raw_shop.events"]
    assert compacted.version == before.version + 2
    assert int(compacted.committed_at.timestamp() * 1000) == appended_at


@pytest.mark.parametrize("is_moving", [False, True])
def test_a_file_of_the_views_stands_still_or_moves_on(
    shop: Lake, tmp_path: Path, is_moving: bool
) -> None:
    file = write(shop, tmp_path, is_moving)
    append(shop, "raw_shop.events", 2)
    with duckdb.connect(str(file), read_only=True) as connection:
        prepare(connection, shop)
        counted = connection.execute("select count(*) from staging.events").fetchall()
    assert counted == [(3 if is_moving else 2,)]


def test_dbts_views_answer_in_the_terminal(tmp_path: Path, project_env: Mapping[str, str]) -> None:
    project = Project(tmp_path / "project", {**project_env, "TZ": "Asia/Tokyo"})
    for path, text in MODELS.items():
        project.write(path, text)
    append(project.lake, "raw_shop.events", 0, 2)
    project.dbt("build")
    append(project.lake, "raw_shop.events", 2)

    def answer(*arguments: str) -> str:
        done = run(project.folder, project.env, "tarn", "query", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    sql = "select *, current_setting('TimeZone') as zone from marts.rpt_events"
    assert answer("--live", "-f", "csv", sql) == "fresh,built,zone\n3,2,UTC\n"
    assert "Catalog Error" in run(project.folder, project.env, "tarn", "query", sql).stderr
    left = [path.name for path in (project.folder / ".tarn").glob("live-*")]
    assert left == []
