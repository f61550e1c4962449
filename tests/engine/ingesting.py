"""A project with nothing but sources, for tests that load."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from tarn.ingestion.engine import LoadResult, ingest
from tarn.ingestion.ledger import TableLoad
from tarn.settings import settings
from tarn.storage.lake import Lake
from tests.engine.upstreams import Api, serving

Row = dict[str, Any]


class Project:
    """A project with nothing but sources."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "dbt_project.yml").touch()
        (path / "ingestion").mkdir()
        self.lake = Lake(str(path / "lake"))

    def declare(self, system: str, kind: str, connection: str, tables: str) -> None:
        """One system. `tables` is YAML, indented by two."""
        (self.path / f"ingestion/{system}.yml").write_text(
            f"system: {system}\ndescription: For a test.\nowner: {{name: Us, email: us@x.com}}\n"
            f"kind: {kind}\nconnection: {connection}\ntables:\n{tables}\n"
        )

    def load(self, *systems: str) -> dict[str, TableLoad]:
        """Ingest; the result of each table by name. No load may leave anything behind."""
        results = self.results(*systems)
        return {table.table: table for result in results for table in result.tables}

    def results(self, *systems: str) -> list[LoadResult]:
        results = ingest(systems)
        assert list((self.path / ".tarn/ingestion").iterdir()) == []
        for table in (table for result in results for table in result.tables):
            counts = table.counts
            print(table)
            assert counts.read == counts.accepted + counts.quarantined + counts.deduplicated
        return results

    def rows(self, table: str, columns: str = "*", order: str = "all") -> list[Row]:
        """A lake table without what differs from load to load."""
        found = self.lake.table(table)
        assert found is not None, f"{table} is not in the lake"
        incoming = found.to_pyarrow_table()
        kept = [name for name in incoming.schema.names if name not in ("_load_id", "_loaded_at")]
        with duckdb.connect() as connection:
            connection.register("rows", incoming.select(kept))
            sql = f"select {columns} from rows order by {order}"
            found_rows: list[Row] = connection.execute(sql).to_arrow_table().to_pylist()
            return found_rows

    def versions(self) -> dict[str, int]:
        """Every table of the lake and its version."""
        tables = {name: self.lake.table(name) for name in self.lake.names()}
        return {name: table.version() for name, table in tables.items() if table is not None}

    def types(self, table: str) -> dict[str, str]:
        found = self.lake.table(table)
        assert found is not None
        return {field.name: str(field.type) for field in pa.schema(found.schema().to_arrow())}

    def sql(self, statements: str) -> None:
        """Change the SQLite database `shop.db`, which the declared ones point to."""
        with closing(sqlite3.connect(self.path / "shop.db")) as connection:
            connection.executescript(statements)

    def file(self, name: str, text: str) -> None:
        path = self.path / "drop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    for name in ("TARN_LAKE", "TARN_WORK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield Project(tmp_path)
    settings.cache_clear()


@pytest.fixture
def api() -> Iterator[tuple[Api, str]]:
    api = Api()
    with serving(api.answer) as address:
        yield api, address


def counts_of(load: TableLoad) -> tuple[int, int, int, int]:
    """Rows read, accepted, quarantined, deduplicated."""
    counts = load.counts
    return counts.read, counts.accepted, counts.quarantined, counts.deduplicated
