"""The report's figures are true, its predictions come true, and looking costs nothing."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable

from tarn import cli
from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage import catalog, redis_copy, releases
from tarn.storage.datafiles import DataFile, data_files
from tarn.storage.lake import Lake
from tarn.storage.policy import Policy
from tarn.storage.releases import Pin
from tarn.storage.upkeep import rewrite
from tarn.storage.upkeep.maintain import maintain
from tarn.storage.upkeep.report import Advice, TableReport, apply, report
from tarn.storage.writer import write

DAY = timedelta(days=1)


def kept(lake: Lake, **policy: Any) -> Lake:
    """The same lake under another policy."""
    return replace(lake, policy=Policy.model_validate(policy))


def tills(day: int, rows: int = 2000) -> pa.Table:
    """What one day's tills might deliver: repetitive, as sales are."""
    numbers = range(rows)
    return pa.table(
        {
            "month": [f"2017-{1 + day % 3:02}"] * rows,
            "store": pa.array([n * 7 % 40 for n in numbers]),
            "product": [f"product {n * n % 997:05}" for n in numbers],
            "amount": [(n * 31 % 500) / 100 for n in numbers],
        }
    )


def fill(lake: Lake, name: str, days: int, **options: Any) -> None:
    for day in range(days):
        write(lake, name, tills(day), mode="append", **options)


def one(lake: Lake, name: str, now: datetime | None = None) -> TableReport:
    [found] = report(lake, [name], now).tables
    return found


def in_days(days: float) -> datetime:
    return datetime.now(UTC) + days * DAY


def test_figures_are_those_of_the_files(lake: Lake) -> None:
    fill(lake, "marts.sales", 3)
    write(lake, "marts.sales", tills(1), mode="replace")
    write(lake, "marts.sales", tills(2), mode="append")
    found = one(lake, "marts.sales")
    on_disk = {
        path: path.stat().st_size for path in Path(lake.uri("marts.sales")).glob("*.parquet")
    }
    table = lake.table("marts.sales")
    assert table is not None
    live = [uri.removeprefix("file://") for uri in table.file_uris()]
    assert found.files == len(live) == 2
    assert found.size == sum(os.path.getsize(path) for path in live)
    assert found.size + found.held == sum(on_disk.values())
    assert found.rows == 4000
    sums = "sum(total_uncompressed_size) / sum(total_compressed_size)"
    ratio = duckdb.sql(f"select {sums} from parquet_metadata({live})").fetchone()
    assert ratio is not None
    assert found.ratio == pytest.approx(float(ratio[0]))
    assert found.cost == pytest.approx((found.size + found.held) / 1e9 * 0.023)


def test_a_read_is_seen_and_the_report_itself_is_none(lake: Lake) -> None:
    write(lake, "marts.sales", tills(0), mode="append")
    pins = {"marts.sales": Pin.of(lake.table("marts.sales"))}  # type: ignore[arg-type]
    catalog.build(lake, releases.publish(lake, pins, None, {}))
    [file] = Path(lake.uri("marts.sales")).glob("*.parquet")
    written = file.stat().st_mtime
    os.utime(file, (written - 60, written))
    catalog.build(lake, releases.read(lake, 1))
    assert one(lake, "marts.sales").last_read is None
    assert file.stat().st_atime == written - 60
    with duckdb.connect(str(catalog.path(lake)), read_only=True) as connection:
        connection.execute("select sum(amount) from marts.sales").fetchall()
    read = one(lake, "marts.sales").last_read
    if read is None:
        assert "noatime" in Path("/proc/mounts").read_text()
    else:
        assert timedelta(0) <= datetime.now(UTC) - read < DAY


def test_reads_of_builds_are_taken_from_their_commits(lake: Lake) -> None:
    write(lake, "raw.tills", tills(0), mode="append")
    [file] = Path(lake.uri("raw.tills")).glob("*.parquet")
    os.utime(file, (0, file.stat().st_mtime))
    properties = {"tarn.reads": "raw.other@3, raw.tills@0"}
    write(lake, "marts.sales", tills(0), mode="append", properties=properties)
    found = {each.name: each for each in report(lake).tables}
    assert found["raw.tills"].last_read == found["marts.sales"].last_written


def test_growth_is_measured_against_a_month_ago(lake: Lake) -> None:
    write(lake, "marts.sales", tills(0), mode="append")
    first = one(lake, "marts.sales").size
    assert one(lake, "marts.sales", in_days(0.5)).growth is None
    write(lake, "marts.sales", tills(1), mode="append")
    size = one(lake, "marts.sales").size
    # As if the first version were twenty days old.
    log = Path(lake.uri("marts.sales"), "_delta_log", f"{0:020}.json")
    then = int((in_days(0) - 20 * DAY).timestamp() * 1000)
    lines = log.read_text().splitlines()
    stamped = [_at(line, then) if '"commitInfo"' in line else line for line in lines]
    log.write_text("\n".join(stamped) + "\n")
    growth = one(lake, "marts.sales").growth
    assert growth == pytest.approx((size - first) * 1.5, rel=0.01)


def _at(line: str, milliseconds: int) -> str:
    head, _, tail = line.partition('"timestamp":')
    return f'{head}"timestamp":{milliseconds}{tail[tail.index(",") :]}'


def applied(lake: Lake, name: str, now: datetime | None = None) -> tuple[Advice, int]:
    """Do the one thing advised; give the advice and the bytes of the table afterwards."""
    [advice] = report(lake, [name], now).advice
    [done] = apply(lake, [advice])
    assert done.note is None
    assert done.measured is not None
    assert done.measured == pytest.approx(advice.predicted, rel=0.15)
    assert report(lake, [name], now).advice == []
    return advice, one(lake, name).size


def test_small_files_are_compacted_as_predicted(lake: Lake) -> None:
    fill(lake, "raw.tills", 12)
    rows = duckdb.sql(f"select sum(hash(t)) from read_parquet('{lake.uri('raw.tills')}/*') t")
    before = rows.fetchone()
    advice, size = applied(lake, "raw.tills")
    assert (advice.action, advice.files) == ("compact", 12)
    assert 0 < size < advice.size
    table = lake.table("raw.tills")
    assert table is not None
    files = [uri.removeprefix("file://") for uri in table.file_uris()]
    assert duckdb.sql(f"select sum(hash(t)) from read_parquet({files}) t").fetchone() == before


def test_old_partitions_are_cooled_as_predicted(lake: Lake) -> None:
    fill(lake, "raw.tills", 9, partition_by=["month"])
    cold = {"cold": {"after": "6 months", "partition": "month"}}
    advice, size = applied(kept(lake, layers={"raw": cold}), "raw.tills")
    assert (advice.action, advice.files) == ("cool", 9)
    assert size < 0.9 * advice.size


@pytest.mark.everywhere
def test_report_and_upkeep_are_the_same_on_disk_and_on_s3(lake: Lake) -> None:
    fill(lake, "raw.tills", 9, partition_by=["month"])
    for day in range(12):
        write(lake, "marts.sales", tills(day, 50), mode="replace")
    pins = {name: Pin.of(table) for name in lake.names() if (table := lake.table(name))}
    releases.publish(lake, pins, None, {})
    cold = {"raw.*": {"cold": {"after": "6 months", "partition": "month"}}}
    strict = kept(
        lake, tables=cold, vacuum_after="0 hours", releases={"keep": "0 days", "at_least": 1}
    )
    lake.objects.put("marts/half/part-00000-0f3d0d5e-9b5a-4f7e-8a7c-6f1f5d8f6a11.parquet", b"x")
    assert {each.action for each in report(strict).advice} == {"cool", "vacuum"}
    later = in_days(1)
    first = maintain(strict, now=later)
    assert first.release is not None
    assert first.expired == [1]
    second = maintain(strict, now=later)
    assert [t.note for t in (*first.tables, *second.tables) if t.note] == []
    pin = first.release.tables["raw.tills"]
    table = lake.table("raw.tills", pin.version)
    assert table is not None
    assert Pin.of(table).rows == pin.rows == 18_000
    assert table.to_pyarrow_table()["amount"].to_pylist().count(0.31) == 9 * 4
    data = [entry["path"] for page in lake.objects.list() for entry in page]
    files = [path for path in data if path.endswith(".parquet") and "_delta_log" not in path]
    assert len(files) == 3 + 1
    assert not [path for path in data if "/upkeep/" in path or "/expired/" in path]
    logs = [path for path in data if path.startswith("marts/sales/_delta_log/")]
    assert len([path for path in logs if path.endswith(".json")]) < 12


def test_another_codec_is_taken_on_as_predicted(lake: Lake) -> None:
    loose = {"layout": {"codec": "uncompressed"}}
    fill(kept(lake, defaults=loose), "raw.tills", 2)
    advice, size = applied(lake, "raw.tills")
    assert advice.action == "recompress"
    assert size < 0.8 * advice.size


def test_a_declared_partitioning_is_carried_out_and_outlives_a_replacement(lake: Lake) -> None:
    fill(lake, "marts.sales", 3)
    parted = kept(lake, tables={"marts.sales": {"partition_by": ["month"]}})
    advice, _ = applied(parted, "marts.sales")
    assert advice.action == "partition"
    write(parted, "marts.sales", tills(0), mode="replace")
    table = parted.table("marts.sales")
    assert table is not None
    assert table.metadata().partition_columns == ["month"]


def test_a_declared_partitioning_that_cannot_be_is_told(lake: Lake) -> None:
    write(lake, "marts.sales", tills(0), mode="append")
    wrong = kept(lake, tables={"marts.sales": {"partition_by": ["mouth"]}})
    assert one(wrong, "marts.sales").note == (
        "storage.yml: partition_by: no column 'mouth'; did you mean 'month'?"
    )


def test_partitioning_starts_again_when_somebody_writes_meanwhile(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(lake, "marts.sales", 2)
    real = data_files

    def overtaken(table: DeltaTable) -> list[DataFile]:
        monkeypatch.setattr("tarn.storage.upkeep.rewrite.data_files", real)
        write(lake, "marts.sales", tills(2), mode="append")
        return real(table)

    monkeypatch.setattr("tarn.storage.upkeep.rewrite.data_files", overtaken)
    outcome = rewrite.repartition(lake, "marts.sales", ["month"], lake.policy.of("").layout)
    assert outcome.files_before == outcome.files_after == 3
    assert one(lake, "marts.sales").rows == 6000


def test_garbage_is_removed_as_predicted(lake: Lake) -> None:
    for day in range(3):
        write(lake, "marts.sales", tills(day), mode="replace")
    later = in_days(2)
    advice, _ = applied(lake, "marts.sales", later)
    assert advice.action == "vacuum"
    assert advice.predicted == 0
    assert one(lake, "marts.sales").held == 0


def test_applied_advice_is_released_to_readers(lake: Lake) -> None:
    fill(lake, "raw.tills", 12)
    pins = {"raw.tills": Pin.of(lake.table("raw.tills"))}  # type: ignore[arg-type]
    releases.publish(lake, pins, None, {})
    applied(lake, "raw.tills")
    assert releases.numbers(lake) == [1, 2]


def test_what_the_policy_does_not_say_is_proposed_and_not_done(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tarn.storage.upkeep.report._WORTH_COOLING", 1000)
    write(lake, "raw.tills", tills(0), mode="append")
    [file] = Path(lake.uri("raw.tills")).glob("*.parquet")
    status = file.stat()
    os.utime(file, (status.st_atime, status.st_mtime - 60))
    [advice] = report(lake, now=in_days(100)).advice
    assert advice.declare == "tables: {raw.tills: {tier: cold}}"
    assert advice.why == "not read for 100 days" or advice.why == "not read for 99 days"
    assert apply(lake, [advice]) == []
    declared = kept(lake, tables={"raw.tills": {"tier": "cold"}})
    assert [each.action for each in report(declared).advice] == ["cool"]


def test_hot_tables_are_native_copies_of_the_release(lake: Lake) -> None:
    hot = kept(lake, tables={"marts.sales": {"tier": "hot", "hot": {"key": ["store"]}}})
    write(
        hot,
        "marts.sales",
        tills(0),
        mode="append",
        description="Sold.",
        comments={"store": "Where."},
    )
    write(hot, "marts.other", tills(0), mode="append")
    pins = {name: Pin.of(table) for name in hot.names() if (table := hot.table(name))}
    releases.publish(hot, pins, None, {})
    for lake_now, kind in ((lake, "VIEW"), (hot, "BASE TABLE")):
        file = catalog.ensure(lake_now)
        with duckdb.connect(str(file), read_only=True) as connection:
            kinds = "select table_name, table_type from information_schema.tables"
            found = dict(connection.execute(f"{kinds} where table_schema = 'marts'").fetchall())
            assert found == {"sales": kind, "other": "VIEW"}
            hashes = "select sum(hash(s)) from marts."
            same = f"{hashes}sales s union {hashes}other s"
            assert len(connection.execute(same).fetchall()) == 1
    with duckdb.connect(str(catalog.path(hot)), read_only=True) as connection:
        [index] = connection.execute("select expressions from duckdb_indexes()").fetchall()
        [comment] = connection.execute(
            "select comment from duckdb_tables() where comment = 'Sold.'"
        ).fetchall()
    assert "store" in index[0]
    assert comment
    assert one(hot, "marts.sales").native > 0
    assert one(hot, "marts.sales").cost > one(hot, "marts.other").cost


def test_the_command_line_tells_predicted_beside_measured(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(lake, "raw.tills", 12)
    (tmp_path / "dbt_project.yml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TARN_LAKE", lake.root)
    settings.cache_clear()
    run = CliRunner().invoke
    told = run(cli.cli, ["storage", "report"])
    assert told.exit_code == 0, told.output
    assert "compact" in told.output
    assert "small files" in told.output
    told = run(cli.cli, ["maintain", "--dry-run"])
    assert "raw.tills: 12 files" in told.output
    assert "would be compacted" in told.output
    told = run(cli.cli, ["storage", "report", "--apply"])
    assert told.exit_code == 0, told.output
    assert "predicted" in told.output
    assert "measured" in told.output
    assert "12 → 1" in told.output
    told = run(cli.cli, ["maintain"])
    assert told.exit_code == 0, told.output
    assert "Nothing to do." in told.output
    told = run(cli.cli, ["storage", "report"])
    assert "Nothing to advise" in told.output
    settings.cache_clear()


@pytest.fixture
def redis_address(tmp_path: Path) -> Iterator[str]:
    """A real Redis on a free port."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    for line in server.stdout:
        if b"Ready to accept connections" in line:
            break
    yield f"redis://127.0.0.1:{port}"
    server.terminate()
    server.communicate()


def test_hot_rows_are_in_redis_under_their_key_one_release_at_a_time(
    lake: Lake, redis_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis = pytest.importorskip("redis")
    policy = {"tier": "hot", "hot": {"redis": redis_address, "key": ["store", "day"]}}
    hot = kept(lake, tables={"marts.sales": policy})
    now: releases.Release | None = None
    client = redis.Redis.from_url(redis_address)
    for amount in ("1.10", "2.20", "3.30"):
        rows = {"store": [7, 8], "day": [date(2017, 1, 2)] * 2, "amount": [Decimal(amount)] * 2}
        write(hot, "marts.sales", pa.table(rows), mode="replace")
        now = releases.publish(hot, {"marts.sales": Pin.of(hot.table("marts.sales"))}, now, {})  # type: ignore[arg-type]
        catalog.build(hot, now)
        number = int(client.get(redis_copy.CURRENT))
        assert number == now.number
        row = client.get(redis_copy.key(number, "marts.sales", [7, date(2017, 1, 2)]))
        assert json.loads(row) == {"store": 7, "day": "2017-01-02", "amount": amount}
    numbers = {key.split(b":")[1] for key in client.scan_iter("tarn:*:*")}
    assert numbers == {b"2", b"3"}
    client.flushall()
    maintain(hot)
    assert int(client.get(redis_copy.CURRENT)) == 3
    client.close()
    doubled = kept(
        lake, tables={"marts.sales": policy | {"hot": {"redis": redis_address, "key": ["day"]}}}
    )
    client.flushall()
    with pytest.raises(TarnError, match="two rows have the key"):
        maintain(doubled)
    away = kept(
        lake,
        tables={
            "marts.sales": policy | {"hot": {"redis": "redis://127.0.0.1:1", "key": ["store"]}}
        },
    )
    assert now is not None
    catalog.build(away, now)
    assert "its readers stay at their release" in caplog.text
