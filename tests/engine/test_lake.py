"""What is not a sound table of the lake is refused by name or left alone, and stays as it was."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarn.errors import TarnError
from tarn.settings import Settings
from tarn.storage import catalog, releases
from tarn.storage.duck import prepare, select_failure, select_from
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin
from tarn.storage.writer import write

NAME = "raw.orders"
OUTSIDE = pa.table({"n": pa.array([99], pa.int64()), "s": ["outside"]})


@pytest.fixture
def table(lake: Lake) -> Path:
    """The folder of a table with four commits of one row each."""
    for n in range(4):
        rows = pa.table({"n": pa.array([n], pa.int64()), "s": [str(n)]})
        write(lake, NAME, rows, mode="append")
    return Path(lake.uri(NAME))


def commit(table: Path, version: int) -> Path:
    return table / f"_delta_log/{version:020d}.json"


def edit(table: Path, version: int, action: str, **changed: Any) -> None:
    """Change an action of a commit."""
    file = commit(table, version)
    actions = [json.loads(line) for line in file.read_text().splitlines()]
    next(each for each in actions if action in each)[action].update(changed)
    file.write_text("".join(json.dumps(each) + "\n" for each in actions))


def without(table: Path, version: int, action: str) -> None:
    file = commit(table, version)
    lines = [line for line in file.read_text().splitlines() if action not in json.loads(line)]
    file.write_text("\n".join(lines) + "\n")


def data_file(table: Path, version: int) -> Path:
    actions = [json.loads(line) for line in commit(table, version).read_text().splitlines()]
    return table / str(next(each["add"]["path"] for each in actions if "add" in each))


def outside(table: Path, path: str) -> None:
    """Let the last commit name a file beside the lake."""
    file = table.parents[2] / "outside.parquet"
    pq.write_table(OUTSIDE, file)
    edit(table, 3, "add", path=path.format(file=file), size=file.stat().st_size)


def checkpoint(table: Path) -> Path:
    from deltalake import DeltaTable

    DeltaTable(str(table)).create_checkpoint()
    return next(table.glob("_delta_log/*.checkpoint.parquet"))


def in_parts(table: Path) -> None:
    """One of a checkpoint's two parts is there, the commits before it are not."""
    whole = checkpoint(table)
    whole.rename(whole.with_name(f"{3:020d}.checkpoint.{1:010d}.{2:010d}.parquet"))
    for version in range(3):
        commit(table, version).unlink()


def replaced(table: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3], "s": ["x", "y", "z"]}), data_file(table, 1))


def linked(table: Path) -> None:
    file = table.parents[2] / "outside.parquet"
    pq.write_table(OUTSIDE, file)
    data_file(table, 1).unlink()
    data_file(table, 1).symlink_to(file)


def moved_out(table: Path) -> None:
    elsewhere = table.parents[2] / "elsewhere"
    table.rename(elsewhere)
    table.symlink_to(elsewhere)


def log_moved_out(table: Path) -> None:
    elsewhere = table.parents[2] / "elsewhere"
    (table / "_delta_log").rename(elsewhere)
    (table / "_delta_log").symlink_to(elsewhere)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


SCHEMA = {
    "type": "struct",
    "fields": [{"name": "n", "type": "hypercube", "nullable": True, "metadata": {}}],
}
FEATURES = {"minReaderVersion": 3, "minWriterVersion": 7, "writerFeatures": ["timeMachine"]}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer protocol": (
        lambda t: edit(t, 0, "protocol", minReaderVersion=4, minWriterVersion=8),
        "reader version 4",
    ),
    "unknown feature": (
        lambda t: edit(t, 0, "protocol", readerFeatures=["timeMachine"], **FEATURES),
        "timeMachine",
    ),
    "unknown type": (
        lambda t: edit(t, 0, "metaData", schemaString=json.dumps(SCHEMA)),
        "hypercube",
    ),
    "schema that is no JSON": (lambda t: edit(t, 0, "metaData", schemaString="{oops"), "JSON|key"),
    "no protocol": (lambda t: without(t, 0, "protocol"), "protocol"),
    "no metadata": (lambda t: without(t, 0, "metaData"), "metadata"),
    "commit that is no JSON": (lambda t: commit(t, 2).write_text("{oops\n"), "Json"),
    "commit of other bytes": (lambda t: commit(t, 3).write_bytes(b"\0\xff" * 50), "Json|UTF"),
    "last commit cut": (lambda t: cut(commit(t, 3), 60), "Json"),
    "last commit cut to nothing": (lambda t: cut(commit(t, 3), 0), "commit 3 is empty"),
    "commit missing in the middle": (lambda t: commit(t, 2).unlink(), "contiguous"),
    "first commit missing": (lambda t: commit(t, 0).unlink(), "metadata or protocol"),
    "checkpoint cut": (lambda t: cut(checkpoint(t), 200), "[Cc]heckpoint|Parquet"),
    "checkpoint's part missing": (in_parts, "[Cc]heckpoint"),
    "data file missing": (lambda t: data_file(t, 1).unlink(), "data file is missing: part-"),
    "data file cut": (lambda t: cut(data_file(t, 1), 100), "has 100 bytes, its log says"),
    "data file replaced": (replaced, "cut or replaced"),
    "absolute path": (lambda t: outside(t, "{file}"), "outside its folder"),
    "address of a file": (lambda t: outside(t, "file://{file}"), "outside its folder"),
    "path upwards": (lambda t: outside(t, "../../../outside.parquet"), "outside its folder"),
    "encoded path upwards": (lambda t: outside(t, "%2e./../%2E%2E/outside.parquet"), "outside"),
    "address of another service": (lambda t: outside(t, "s3://other/a.parquet"), "outside"),
    "link to a file outside": (linked, "leads out of the lake"),
    "link to a folder outside": (moved_out, "leads out of the lake"),
    "link to a log outside": (log_moved_out, "leads out of the lake"),
}


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, links not followed, by its hash."""
    files = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    return {str(file): file.readlink().name if file.is_symlink() else _hash(file) for file in files}


def _hash(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_is_refused_by_name_and_left_as_it_is(
    lake: Lake, table: Path, damage: str
) -> None:
    spoil, told = DAMAGE[damage]
    spoil(table)
    before = contents(table.parents[2])
    with pytest.raises(TarnError, match=told) as failure:
        lake.table(NAME)
    assert failure.value.where == NAME
    assert "\n  → " in str(failure.value)
    assert len(str(failure.value)) < 700
    assert lake.names() == [NAME]
    with pytest.raises(TarnError, match=told):
        write(lake, NAME, pa.table({"n": [5], "s": ["5"]}), mode="append")
    assert contents(table.parents[2]) == before


def test_one_unreadable_table_leaves_the_catalog_to_the_others(lake: Lake, table: Path) -> None:
    write(lake, "marts.sales", pa.table({"n": [7]}), mode="append")
    pins = {name: Pin.of(found) for name in lake.names() if (found := lake.table(name))}
    release = releases.publish(lake, pins, None, {})
    data_file(table, 1).unlink()
    with duckdb.connect(str(catalog.build(lake, release)), read_only=True) as connection:
        prepare(connection, lake)
        assert connection.execute("select n from marts.sales").fetchall() == [(7,)]
        for sql in ("select * from", "select count(*) from", "select n from", "select max(n) from"):
            with pytest.raises(duckdb.Error, match="data file is missing"):
                connection.execute(f"{sql} raw.orders").fetchall()


def test_a_hint_that_lies_is_no_reason_to_read_less(lake: Lake, table: Path) -> None:
    checkpoint(table)
    (table / "_delta_log/_last_checkpoint").write_text("{oops")
    found = lake.table(NAME)
    assert found is not None
    with duckdb.connect() as connection:
        prepare(connection, lake)
        assert connection.execute(f"select sum(n) from ({select_from(found)})").fetchall() == [(6,)]


@pytest.mark.parametrize(
    "name",
    [
        "../outside.orders", "raw...", "raw/x.orders", "raw.orders/../x", "raw.o\0x", "raw.ördérs",
        "raw", "raw.orders.x", "", ".", "_tarn.releases", f"raw.{'x' * 300}", "raw.orders\n",
        "/etc.passwd", "raw.%2e%2e", "s3://raw.orders", "raw.-x;drop",
    ],
)  # fmt: skip
def test_a_name_that_is_no_table_name_is_refused(lake: Lake, name: str) -> None:
    with pytest.raises(TarnError, match="is not a table name") as failure:
        lake.table(name)
    assert len(str(failure.value)) < 400


def foreign(root: Path) -> None:
    """What other programs leave in a folder."""
    for path in (
        "README.txt", ".DS_Store", "raw/notes.md", "raw/_temporary/0/part-0.parquet",
        "raw/iceberg/metadata/v1.metadata.json", "raw/hudi/.hoodie/hoodie.properties",
        "raw/spark/_SUCCESS", "raw/pandas/data.parquet", "raw/logless/_delta_log/notes.txt",
        "empty/x/y/z.csv", "raw/_delta_log/00000000000000000000.json",
        "größe/tabelle/_delta_log/00000000000000000000.json",
    ):  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("foreign")
    (root / "raw/nowhere").symlink_to(root / "is-not-there")
    (root / "raw/loop").symlink_to(root)
    (root / os.fsdecode(b"raw/\xff\xfe")).mkdir()


def test_what_is_no_table_is_not_listed(lake: Lake, table: Path) -> None:
    foreign(Path(lake.root))
    assert lake.names() == [NAME]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raw.iceberg", "an Iceberg table"),
        ("raw.hudi", "a Hudi table"),
        ("raw.spark", "Parquet files of another program"),
        ("raw.pandas", "Parquet files of another program"),
    ],
)
def test_no_table_is_made_in_the_folder_of_another_program(
    lake: Lake, name: str, told: str
) -> None:
    foreign(Path(lake.root))
    before = contents(Path(lake.root))
    with pytest.raises(TarnError, match=told):
        write(lake, name, pa.table({"n": [1]}), mode="append")
    assert contents(Path(lake.root)) == before


def test_a_table_whose_first_write_was_killed_is_written_again(lake: Lake, table: Path) -> None:
    shutil.rmtree(table / "_delta_log")
    assert lake.table(NAME) is None
    write(lake, NAME, pa.table({"n": [1]}), mode="append")
    assert Pin.of(_found(lake)).rows == 1


def _found(lake: Lake) -> Any:
    table = lake.table(NAME)
    assert table is not None
    return table


@pytest.mark.parametrize("folder", ["my lake", "100", "it's", "a=b", "lüke", "a+b&c", "n=5"])
def test_a_lake_may_be_in_any_folder(tmp_path: Path, folder: str) -> None:
    lake = Lake.open(_settings(tmp_path, str(tmp_path / folder)))
    rows = pa.table({"n": pa.array([1, 2], pa.int64()), "a": ["x", None]})
    write(lake, NAME, rows, mode="append")
    write(lake, "raw.parts", rows, mode="append", partition_by=["n"])
    with duckdb.connect() as connection:
        prepare(connection, lake)
        for name in lake.names():
            table = lake.table(name)
            assert table is not None
            found = connection.execute(f"select n, a from ({select_from(table)}) order by n")
            assert found.fetchall() == [(1, "x"), (2, None)]


@pytest.mark.parametrize(
    "root",
    [
        "gs://bucket/lake",
        "s3://",
        "s3://bucket/../other",
        "/tmp/%20/lake",
        "/tmp/[x]/lake",
        "/tmp/a#b",
    ],
)
def test_a_lake_that_cannot_be_is_refused_at_once(tmp_path: Path, root: str) -> None:
    with pytest.raises(TarnError, match=r"lake is a folder|folder's name"):
        Lake.open(_settings(tmp_path, root))


def _settings(project: Path, lake: str) -> Settings:
    return Settings(project, lake, project / ".tarn", {})


def test_a_failure_in_place_of_a_table_says_itself_to_every_query() -> None:
    failure = TarnError('it\'s "gone"', "raw.a.b", "look {there}")
    with duckdb.connect() as connection:
        connection.execute(f"create view v as {select_failure(failure)}")
        for sql in ("select count(*) from v", "select 1 from v", "select x from v", "from v, v w"):
            with pytest.raises(duckdb.Error, match="gone"):
                connection.execute(sql).fetchall()
