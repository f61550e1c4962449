"""The demo project with its lake loaded, at its own size or a multiple of it."""

import shutil
import subprocess
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from benchmarks.harness import RUN, beside, python
from tarn.storage.lake import Lake
from tarn.storage.writer import ROW_GROUP_ROWS, write

ROOT = Path(__file__).parents[1]
_PARTS = ("dbt_project.yml", "profiles.yml", "storage.yml", "ingestion", "models", "seeds")
_PARTS_TOO = ("snapshots", "macros", "tests/singular", "tarn/dbt/macros", "demo")
_SPREAD = {
    # Each copy is another retailer's year: its keys are its own, so that all joins hold.
    "raw_pos.baskets": "basket_id + {n} * 1000000000000 as basket_id, household_id + {n} * 10000000"
    " as household_id, store_id + {n} * 1000000 as store_id",
    "raw_pos.basket_items": "basket_id + {n} * 1000000000000 as basket_id",
    "raw_pos.households": "household_id + {n} * 10000000 as household_id",
    "raw_pos.stores": "store_id + {n} * 1000000 as store_id, store_code || '-{n}' as store_code",
    "raw_catalogue.stores": "store_id + {n} * 1000000 as store_id",
    "raw_catalogue.promotions": "store_id + {n} * 1000000 as store_id",
}


def project(times: int = 1) -> Path:
    """A folder with the project and its raw tables, made once; nothing is built in it yet."""
    folder = RUN / f"demo_{times}x"
    if (folder / "loaded").exists():
        return folder
    declarations(folder)
    profile = folder / "profiles.yml"
    # What DuckDB may hold grows with the data, for dbt and the plain script alike.
    profile.write_text(profile.read_text().replace("700MB", f"{700 * times}MB"))
    if times == 1:
        command = python("demo", "--", beside("tarn"), "ingest")
        subprocess.run(command, cwd=folder, check=True)
    else:
        _multiply(Lake(str(project() / "lake")), Lake(str(folder / "lake")), times)
    (folder / "loaded").touch()
    return folder


def declarations(folder: Path) -> None:
    """Put the project's declarations into a folder, anew; it has no lake yet."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in (*_PARTS, *_PARTS_TOO):
        if (ROOT / part).is_dir():
            ignore = shutil.ignore_patterns(".run", "__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=ignore)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / part, folder / part)


def _multiply(small: Lake, large: Lake, times: int) -> None:
    """Write each raw table `times` over, with other keys in each copy."""
    for name in small.names():
        if not name.startswith("raw_"):
            continue
        table = small.table(name)
        assert table is not None
        for number in range(times if name in _SPREAD else 1):
            write(
                large,
                name,
                partial(_copy, name, table, number),
                mode="append",
                partition_by=table.metadata().partition_columns,
            )


def _copy(name: str, table: DeltaTable, number: int) -> pa.RecordBatchReader:
    moved = _SPREAD[name].format(n=number) if number else ""
    files = ", ".join(f"'{file}'" for file in table.file_uris())
    replaced = f" replace ({moved})" if moved else ""
    sql = f"select *{replaced} from read_parquet([{files}])"
    return duckdb.connect().execute(sql).to_arrow_reader(ROW_GROUP_ROWS)
