"""Merging 10,000 rows into 1.5 and into 15 million: what a merge costs hangs on what it changes."""

import os
import shutil
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from benchmarks.harness import RUN, Contender, compare, python
from tarn.storage.lake import Lake
from tarn.storage.writer import ROW_GROUP_ROWS, write

NAME = "marts.lines"
ROWS = 10_000


def lines(first: int, rows: int, step: int = 1, note: str = "sold") -> pa.RecordBatchReader:
    """Receipt lines with ids from `first` on, every `step`th."""
    sql = f"""
        select {first} + i * {step} as line_id, 'product ' || hash(i) % 5000 as product,
            (hash(i * 7) % 10000) / 100 as amount, '{note}' as note,
            timestamp '2017-01-01' + to_seconds(({first} + i * {step}) * 2) as sold_at
        from range({rows}) as r(i)
    """
    return duckdb.connect().execute(sql).to_arrow_reader(ROW_GROUP_ROWS)


def lake(millions: float) -> Path:
    """A lake with one table of so many million rows, made once."""
    folder = RUN / f"merge_{millions}m"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(Lake(str(folder)), NAME, lambda: lines(0, int(millions * 1e6)), mode="append")
        (folder / "made").touch()
    return folder


def merge(folder: Path, kind: str, how: str) -> None:
    """Merge 10,000 rows: eight in ten there already."""
    total = int(float(folder.name.split("_")[1].removesuffix("m")) * 1e6)
    first, step = (total - 8_000, 1) if kind == "recent" else (0, total // 8_000)
    source = lines(first, ROWS, step, "returned").read_all()
    if how == "tarn":
        write(Lake(str(copied(folder))), NAME, source, mode="merge", keys=["line_id"])
        return
    table = DeltaTable(str(copied(folder) / NAME.replace(".", "/")))
    table.merge(
        source, "t.line_id = s.line_id", source_alias="s", target_alias="t"
    ).when_matched_update_all().when_not_matched_insert_all().execute()


def copied(folder: Path) -> Path:
    return folder.with_name(folder.name + "_copy")


def fresh(folder: Path) -> None:
    """A copy of the lake to merge into; files are linked, for none is changed in place."""
    shutil.rmtree(copied(folder), ignore_errors=True)
    shutil.copytree(folder, copied(folder), copy_function=os.link)


def contender(name: str, millions: float, kind: str, how: str) -> Contender:
    folder = lake(millions)
    command = python("benchmarks.merge", str(folder), kind, how)
    return Contender(name, command, before=lambda: fresh(folder))


def main() -> None:
    """Both sizes by us; then us beside delta-rs's own MERGE."""
    sizes = [contender(f"into {size} million rows", size, "recent", "tarn") for size in (1.5, 15)]
    compare("10,000 recent rows merged, whole process", sizes)
    for kind in ("recent", "scattered"):
        ways = [
            contender(name, 15, kind, how)
            for name, how in (("delta-rs MERGE", "delta-rs"), ("tarn", "tarn"))
        ]
        compare(f"10,000 {kind} rows into 15 million, whole process", ways, rounds=3)


if __name__ == "__main__":
    merge(Path(sys.argv[1]), *sys.argv[2:]) if sys.argv[1:] else main()
