"""Tables that Spark wrote read as Spark reads them, or are refused by name: never otherwise."""

import json
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from tarn.dbt.plugin import Plugin
from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage import catalog, releases
from tarn.storage.duck import prepare, select_from, show
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin
from tests.engine.golden.make import ELSEWHERE, plain

HERE = Path(__file__).parent / "golden"
EXPECTED: dict[str, dict[str, dict[str, Any]]] = json.loads((HERE / "expected.json").read_text())
REFUSED = {
    "mapping_partitioned": "column mapping in a partitioned table",
    "partition_name_case": "column mapping in a partitioned table",
    "shallow_clone": "names a file outside its folder",
    "void_column": "void",
}
"""Shapes we do not read, and what the refusal names."""
SCHEMA = "golden"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake of all tables that Spark wrote."""
    root = tmp_path_factory.mktemp("golden") / "lake"
    (root / SCHEMA).mkdir(parents=True)
    with tarfile.open(HERE / "tables.tar.xz") as archive:
        archive.extractall(root / SCHEMA, filter="data")
    for file in (root / SCHEMA).rglob("_delta_log/*.json"):
        file.write_text(file.read_text().replace(ELSEWHERE, str(root / SCHEMA)))
    return Lake(str(root))


@pytest.fixture(scope="module")
def reader(golden: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        prepare(connection, golden)
        yield connection


@pytest.mark.parametrize("shape", EXPECTED)
def test_every_version_reads_as_spark_reads_it(
    golden: Lake, reader: duckdb.DuckDBPyConnection, shape: str
) -> None:
    name = f"{SCHEMA}.{shape}"
    for version, expected in EXPECTED[shape].items():
        if shape in REFUSED or "error" in expected:
            with pytest.raises(TarnError, match=REFUSED.get(shape, "data file is missing")):
                _show(golden, reader, name, int(version))
            continue
        table = _show(golden, reader, name, int(version))
        texts = [c for c, kind in expected["columns"] if kind == "variant"]
        # DuckDB casts a missing variant to the text `null`.
        given = ", ".join(
            f"case when {column} is not null then cast({column} as json) end as {column}"
            for column in texts
        )
        star = f"* replace ({given})" if texts else "*"
        read = reader.execute(f"select {star} from {name}").to_arrow_table()
        assert read.column_names == [column for column, _ in expected["columns"]], version
        assert _rows(read) == expected["rows"], version
        assert Pin.of(table).rows == len(expected["rows"]), version


def test_the_catalog_and_dbt_show_every_table(
    golden: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dbt_project.yml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TARN_LAKE", golden.root)
    settings.cache_clear()
    pins = {name: Pin.of(table) for name in _readable(golden) if (table := golden.table(name))}
    everything = pins | {f"{SCHEMA}.{shape}": Pin(0, 0, "") for shape in REFUSED}
    release = releases.publish(golden, everything, None, {})
    try:
        with duckdb.connect(str(catalog.build(golden, release)), read_only=True) as connection:
            prepare(connection, golden)
            _check_all(connection)
        with duckdb.connect() as connection:
            Plugin("tarn", {}).configure_connection(connection)
            _check_all(connection)
    finally:
        settings.cache_clear()


def _show(lake: Lake, connection: duckdb.DuckDBPyConnection, name: str, version: int) -> Any:
    table = lake.table(name, version)
    assert table is not None
    show(connection, name, select_from(table))
    return table


def _readable(lake: Lake) -> list[str]:
    return [name for name in lake.names() if name.partition(".")[2] not in REFUSED]


def _check_all(connection: duckdb.DuckDBPyConnection) -> None:
    for shape, versions in EXPECTED.items():
        counting = f"select count(*) from {SCHEMA}.{shape}"
        if told := REFUSED.get(shape):
            with pytest.raises(duckdb.Error, match=told):
                connection.execute(counting).fetchall()
        else:
            newest = versions[max(versions, key=int)]
            assert connection.execute(counting).fetchall() == [(len(newest["rows"]),)], shape


def _rows(table: pa.Table) -> list[list[Any]]:
    """The rows as `expected.json` has them: in no order, in JSON's types."""
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_timestamp(field.type) and field.type.tz:
            column = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        columns.append([_told(value, column.type) for value in column.to_pylist()])
    return sorted((list(row) for row in zip(*columns, strict=True)), key=json.dumps)


def _told(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_map(kind):
        return sorted([_told(k, kind.key_type), _told(v, kind.item_type)] for k, v in value)
    if pa.types.is_struct(kind):
        return {field.name: _told(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_told(item, kind.value_type) for item in value]
    if isinstance(value, datetime) and value.tzinfo:
        return plain(value.astimezone(UTC).replace(tzinfo=None))
    return plain(value)
