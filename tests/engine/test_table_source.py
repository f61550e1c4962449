"""Tables that other programs keep: Delta as Spark wrote it, Iceberg by pyiceberg, Hudi by Hudi."""

import resource
import tarfile
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import obstore
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table as IcebergTable

from tarn.ingestion.declarations import declare
from tarn.ingestion.sources.table.source import ForeignTables
from tarn.settings import settings
from tarn.storage.duck import prepare, select_from
from tarn.storage.lake import Lake
from tarn.storage.s3 import S3
from tests.engine.conftest import s3
from tests.engine.golden.make import ELSEWHERE
from tests.engine.ingesting import Project, counts_of, project
from tests.engine.test_golden import EXPECTED, REFUSED

__all__ = ["project", "s3"]

HERE = Path(__file__).parent
SHAPES = (
    "deletion_vectors",
    "mapping_",
    "partition_types",
    "partition_n",
    "type_widening",
    "nested_e",
    "shallow_clone",
    "evolved",
    "checkpoint_v2_parquet",
    "void_column",
    "emptied",
    "row_tracking",
)
"""Beginnings of the names of those tables by Spark that need more than Parquet and a log."""


def orders(*rows: tuple[int, str, str]) -> pa.Table:
    columns = {
        "OrderId": pa.array([row[0] for row in rows], pa.int64()),
        "customer": pa.array([row[1] for row in rows], pa.string()),
        "amount": pa.array([Decimal(row[2]) for row in rows], pa.decimal128(10, 2)),
    }
    return pa.table(columns)


FIRST = orders((1, "Ada", "10.00"), (2, "Bén", "20.50"))
SECOND = orders((3, "Cy", "5.25"))


def declared(project: Project, spec: str = "write: replace", connection: str = "elsewhere") -> None:
    (project.path / "elsewhere").mkdir(exist_ok=True)
    project.declare("partner", "table", connection, f"  orders: {{{spec}}}")


def loaded(project: Project) -> tuple[int, int, int, int]:
    result = project.load("partner")["orders"]
    assert result.error is None
    return counts_of(result)


def failure(project: Project) -> str:
    return str(project.load("partner")["orders"].error)


def source(project: Project) -> ForeignTables:
    return ForeignTables(declare(project.path / "ingestion/partner.yml"), settings())


def people(project: Project) -> list[tuple[Any, ...]]:
    rows = project.rows("raw_partner.orders", "order_id, customer, amount", "order_id")
    return [tuple(row.values()) for row in rows]


class TestDelta:
    @pytest.fixture
    def folder(self, project: Project) -> str:
        declared(project)
        folder = str(project.path / "elsewhere/orders")
        write_deltalake(folder, FIRST)
        return folder

    def test_a_new_version_is_read_and_an_old_one_is_not(
        self, project: Project, folder: str
    ) -> None:
        assert loaded(project) == (2, 2, 0, 0)
        before = project.versions()["raw_partner.orders"]
        assert loaded(project) == (0, 0, 0, 0)
        assert project.versions()["raw_partner.orders"] == before
        write_deltalake(folder, SECOND, mode="append")
        assert loaded(project) == (3, 3, 0, 0)
        assert people(project)[1] == (2, "Bén", Decimal("20.50"))

    @pytest.mark.parametrize("write", ["append", "merge, primary_key: [order_id]"])
    def test_rows_that_are_here_are_told_from_new_ones(
        self, project: Project, folder: str, write: str
    ) -> None:
        declared(project, f"write: {write}")
        assert loaded(project) == (2, 2, 0, 0)
        write_deltalake(folder, SECOND, mode="append")
        assert loaded(project) == (3, 1, 0, 2)
        assert [number for number, *_ in people(project)] == [1, 2, 3]

    def test_a_version_or_a_time_is_kept_to(self, project: Project, folder: str) -> None:
        at = datetime.fromtimestamp(DeltaTable(folder).history(1)[0]["timestamp"] / 1000)
        write_deltalake(folder, SECOND, mode="append")
        declared(project, "write: replace, version: 0")
        assert loaded(project) == (2, 2, 0, 0)
        assert loaded(project) == (0, 0, 0, 0)
        declared(project, "write: replace, version: 1")
        assert loaded(project) == (3, 3, 0, 0)
        moment = (at + timedelta(milliseconds=1)).astimezone().isoformat()
        declared(project, f'write: replace, as_of: "{moment}"')
        assert loaded(project) == (2, 2, 0, 0)
        declared(project, "write: replace, version: 9")
        assert "cannot read the table" in failure(project)

    def test_what_is_not_there_or_cut_is_refused(self, project: Project, folder: str) -> None:
        declared(project, "write: replace, path: no_such")
        assert "no Delta, Iceberg or Hudi table at no_such" in failure(project)
        declared(project)
        (file,) = Path(folder).glob("*.parquet")
        file.write_bytes(file.read_bytes()[:-10])
        assert "a data file was cut or replaced" in failure(project)
        file.unlink()
        assert "a data file is missing" in failure(project)

    def test_a_large_table_is_streamed(self, project: Project, folder: str) -> None:
        rows = 1_500_000
        with duckdb.connect() as connection:
            made = "select range as id, md5(range::varchar) as text, range / 7 as x from range(?)"
            reader = connection.execute(made, [rows]).to_arrow_reader(100_000)
            write_deltalake(folder, reader, mode="overwrite", schema_mode="overwrite")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert loaded(project) == (rows, rows, 0, 0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 500 * 1024, "kilobytes, in which DuckDB may hold half"

    def test_the_folder_offers_its_tables(self, project: Project, folder: str) -> None:
        write_deltalake(str(project.path / "elsewhere/more/stock"), FIRST)
        offered = source(project).offered()
        assert [(each.name, each.spec["path"]) for each in offered] == [
            ("stock", "more/stock"),
            ("orders", "orders"),
        ]
        assert offered[0].columns["amount"] == "decimal(10,2)"
        assert source(project).check() == ["orders: delta table at version 0, 3 columns"]


def test_what_spark_wrote_lands_as_spark_reads_it_or_is_refused(project: Project) -> None:
    folder = project.path / "golden"
    with tarfile.open(HERE / "golden/tables.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for file in folder.rglob("_delta_log/*.json"):
        file.write_text(file.read_text().replace(ELSEWHERE, str(folder)))
    wanted = [shape for shape in EXPECTED if shape.startswith(SHAPES)]
    tables = "\n".join(f"  {shape}: {{write: replace, allow_empty: true}}" for shape in wanted)
    project.declare("spark", "table", "golden", tables)
    found = project.load("spark")
    wrong = {
        shape: found[shape].error or f"{found[shape].counts}"
        for shape in wanted
        if bool(found[shape].error) != (shape in REFUSED)
        or (shape not in REFUSED and found[shape].counts.accepted != rows_in(shape))
    }
    assert wrong == {}
    with duckdb.connect() as connection:
        prepare(connection, Lake(str(folder)))
        for shape in (shape for shape in wanted if shape not in REFUSED and rows_in(shape)):
            assert differing(connection, project, folder, shape) == 0, shape


def rows_in(shape: str) -> int:
    versions = EXPECTED[shape]
    return len(versions[max(versions, key=int)]["rows"])


def differing(
    connection: duckdb.DuckDBPyConnection, project: Project, folder: Path, shape: str
) -> int:
    """Rows that only one of the two has."""
    landed = project.lake.table(f"raw_spark.{shape}")
    assert landed is not None
    theirs = select_from(DeltaTable(str(folder / shape)))
    ours = f"select * exclude (_load_id, _loaded_at) from ({select_from(landed)})"
    sql = f"select count(*) from (({ours}) except all ({theirs}))"
    row = connection.execute(sql).fetchone()
    assert row is not None
    return int(row[0])


class TestIceberg:
    @pytest.fixture
    def table(self, project: Project) -> IcebergTable:
        declared(project)
        warehouse = project.path / "elsewhere"
        catalog = SqlCatalog("x", uri=f"sqlite:///{warehouse}/c.db", warehouse=str(warehouse))
        catalog.create_namespace("n")
        location = str(warehouse / "orders")
        made = catalog.create_table("n.orders", FIRST.schema, location=location)
        made.append(FIRST)
        return made

    def test_each_new_snapshot_is_read_once(self, project: Project, table: IcebergTable) -> None:
        assert loaded(project) == (2, 2, 0, 0)
        assert loaded(project) == (0, 0, 0, 0)
        table.append(SECOND)
        assert loaded(project) == (3, 3, 0, 0)
        table.delete("OrderId = 2")
        assert loaded(project) == (2, 2, 0, 0)
        assert people(project) == [(1, "Ada", Decimal("10.00")), (3, "Cy", Decimal("5.25"))]

    def test_a_snapshot_or_a_time_is_kept_to(self, project: Project, table: IcebergTable) -> None:
        first = table.current_snapshot()
        table.append(SECOND)
        assert first is not None
        declared(project, f"write: replace, version: {first.snapshot_id}")
        assert loaded(project) == (2, 2, 0, 0)
        moment = datetime.fromtimestamp(first.timestamp_ms / 1000).astimezone().isoformat()
        declared(project, f'write: replace, as_of: "{moment}", format: iceberg')
        assert loaded(project) == (0, 0, 0, 0), "the same snapshot by another name"
        declared(project, "write: replace, version: 7")
        assert "no snapshot 7; its last: " in failure(project)

    def test_renamed_and_added_columns_are_followed_by_their_ids(
        self, project: Project, table: IcebergTable
    ) -> None:
        with table.update_schema() as change:
            change.rename_column("customer", "buyer")
            change.add_column("note", _text())
        table.append(
            pa.table({"OrderId": [3], "buyer": ["Cy"], "amount": [Decimal("1.00")], "note": ["x"]})
            .cast(pa.schema([
                ("OrderId", pa.int64()), ("buyer", pa.string()),
                ("amount", pa.decimal128(10, 2)), ("note", pa.string()),
            ]))
        )  # fmt: skip
        assert loaded(project) == (3, 3, 0, 0)
        found = project.rows("raw_partner.orders", "buyer, note", "order_id")
        assert [row["buyer"] for row in found] == ["Ada", "Bén", "Cy"]
        assert [row["note"] for row in found] == [None, None, "x"]

    def test_a_metadata_file_can_be_named(self, project: Project, table: IcebergTable) -> None:
        name = Path(table.metadata_location).name
        table.append(SECOND)
        declared(project, f"write: replace, path: orders/metadata/{name}")
        assert loaded(project) == (2, 2, 0, 0)

    def test_a_table_with_equality_deletes_is_refused(
        self, project: Project, table: IcebergTable
    ) -> None:
        mark_as_equality_deletes(table)
        assert "equality deletes" in failure(project)
        assert project.lake.table("raw_partner.orders") is None

    def test_a_file_that_is_gone_is_told(self, project: Project, table: IcebergTable) -> None:
        for file in Path(table.location()).rglob("*.parquet"):
            file.unlink()
        assert "cannot read the table" in failure(project)


def _text() -> Any:
    from pyiceberg.types import StringType

    return StringType()


def mark_as_equality_deletes(table: IcebergTable) -> None:
    """Make the only data file a delete file by equality, as Flink writes them."""
    from pyiceberg.manifest import DataFileContent, ManifestContent

    snapshot = table.current_snapshot()
    assert snapshot is not None
    (manifest,) = snapshot.manifests(table.io)
    (entry,) = manifest.fetch_manifest_entry(table.io)
    entry.data_file._data[0] = DataFileContent.EQUALITY_DELETES
    manifest._data[3] = ManifestContent.DELETES
    rewrite(table, manifest, entry)


def rewrite(table: IcebergTable, manifest: Any, entry: Any) -> None:
    from pyiceberg.manifest import write_manifest, write_manifest_list

    snapshot = table.current_snapshot()
    assert snapshot is not None
    output = table.io.new_output(manifest.manifest_path + ".avro")
    with write_manifest(2, table.spec(), table.schema(), output, snapshot.snapshot_id, "null") as w:
        w.add(entry)
    made = w.to_manifest_file()
    made._data[3] = manifest._data[3]
    target = table.io.new_output(snapshot.manifest_list)
    Path(snapshot.manifest_list.removeprefix("file://")).unlink()
    with write_manifest_list(2, target, snapshot.snapshot_id, None, 1, "null") as listing:
        listing.add_manifests([made])


class TestHudi:
    @pytest.fixture(params=["cow", "mor"])
    def kind(self, project: Project, request: pytest.FixtureRequest) -> str:
        with tarfile.open(HERE / "hudi/tables.tar.xz") as archive:
            archive.extractall(project.path / "elsewhere", filter="data")
        kind = str(request.param)
        declared(project, f"write: replace, path: {kind}")
        return kind

    def test_updates_and_deletes_are_merged(self, project: Project, kind: str) -> None:
        assert loaded(project) == (3, 3, 0, 0)
        assert people(project) == [
            (1, "Ada", Decimal("10.00")),
            (2, "Ben", Decimal("25.00")),
            (4, "Dé", Decimal("7.00")),
        ]
        row = project.rows("raw_partner.orders", order="order_id")[1]
        assert row["ordered_on"] == date(2024, 1, 2)
        assert row["changed_at"] == datetime(2024, 1, 5, 12)
        assert row["region"] == "south"
        assert not [name for name in row if name.startswith("_hoodie")]
        assert loaded(project) == (0, 0, 0, 0)

    def test_an_instant_or_a_time_is_kept_to(self, project: Project, kind: str) -> None:
        timeline = (project.path / "elsewhere" / kind / ".hoodie").glob("2*commit")
        first, second, _ = sorted(file.name.partition(".")[0] for file in timeline)
        declared(project, f"write: replace, path: {kind}, version: {second}")
        assert loaded(project) == (4, 4, 0, 0)
        declared(project, f"write: replace, path: {kind}, version: {first}")
        assert loaded(project) == (3, 3, 0, 0)
        assert people(project)[1] == (2, "Ben", Decimal("20.50"))
        declared(project, f"write: replace, path: {kind}, version: 7")
        assert "no instant 7; its last: " in failure(project)

    def test_it_says_its_key(self, project: Project, kind: str) -> None:
        offered = {each.name: each for each in source(project).offered()}
        assert offered[kind].spec["primary_key"] == ["order_id"]
        assert offered[kind].columns["changed_at"] == "timestamp"


def test_tables_are_read_from_s3(project: Project, s3: dict[str, str], on_s3: str) -> None:
    service = S3(s3)
    write_deltalake(f"{on_s3}/delta", FIRST, storage_options=service.delta_options())
    put_hudi(service, on_s3)
    catalog = SqlCatalog(
        "x",
        uri=f"sqlite:///{project.path}/c.db",
        warehouse=on_s3,
        **{
            "s3.endpoint": s3["AWS_ENDPOINT_URL"],
            "s3.access-key-id": s3["AWS_ACCESS_KEY_ID"],
            "s3.secret-access-key": s3["AWS_SECRET_ACCESS_KEY"],
            "s3.region": s3["AWS_REGION"],
        },
    )
    catalog.create_namespace("n")
    catalog.create_table("n.ice", FIRST.schema, location=f"{on_s3}/ice").append(FIRST)
    tables = "".join(f"  {name}: {{write: replace}}\n" for name in ("delta", "ice", "cow", "mor"))
    project.declare("partner", "table", on_s3, tables)
    found = project.load("partner")
    assert {name: (each.error, each.counts.accepted) for name, each in found.items()} == {
        "delta": (None, 2),
        "ice": (None, 2),
        "cow": (None, 3),
        "mor": (None, 3),
    }
    assert {each.counts.read for each in project.load("partner").values()} == {0}
    assert sorted(each.name for each in source(project).offered()) == ["cow", "delta", "ice", "mor"]


def put_hudi(service: S3, root: str) -> None:
    store = service.store(root)
    with tarfile.open(HERE / "hudi/tables.tar.xz") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                obstore.put(store, member.name, content.read())


def test_one_version_is_named_one_way(project: Project) -> None:
    declared(project, 'write: replace, version: 1, as_of: "2024-01-01"')
    with pytest.raises(Exception, match="keep one of them"):
        project.load("partner")


def test_the_archive_holds_no_place_of_its_maker() -> None:
    with tarfile.open(HERE / "hudi/tables.tar.xz") as archive:
        files = [archive.extractfile(each) for each in archive if each.isfile()]
        assert all(file is not None and b"/tmp/" not in file.read() for file in files)
