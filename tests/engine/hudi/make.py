"""Writes tables.tar.xz: an orders table as Hudi itself writes it, copy-on-write and merge-on-read.

Run by hand with pyspark 3.5.5 and the jar org.apache.hudi:hudi-spark3.5-bundle_2.12:0.15.0:
python tests/engine/hudi/make.py JAR FOLDER, then put FOLDER/cow and FOLDER/mor into the archive
without the *.crc files. Each has three commits: insert, upsert, delete.
"""

import sys
from datetime import date, datetime
from decimal import Decimal
from typing import Any

COMMITS = [
    ("upsert", [(1, "Ada", "10.00", 1, "north"), (2, "Ben", "20.50", 2, "south")]),
    ("upsert", [(2, "Ben", "25.00", 5, "south"), (4, "Dé", "7.00", 6, "north")]),
    ("delete", [(3, "Cy", "5.25", 7, "north")]),
]
COMMITS[0][1].append((3, "Cy", "5.25", 3, "north"))
COLUMNS = (
    "order_id long, customer string, amount decimal(10,2), ordered_on date, changed_at timestamp,"
    " region string"
)
OPTIONS = {
    "hoodie.table.name": "orders",
    "hoodie.datasource.write.recordkey.field": "order_id",
    "hoodie.datasource.write.precombine.field": "changed_at",
    "hoodie.datasource.write.partitionpath.field": "region",
    "hoodie.metadata.enable": "false",
    "hoodie.embed.timeline.server": "false",
    "hoodie.clean.automatic": "false",
    "hoodie.compact.inline": "false",
    "hoodie.index.type": "SIMPLE",
}


def main(jar: str, folder: str) -> None:
    """Write both tables."""
    from pyspark.sql import SparkSession  # type: ignore[import-not-found,unused-ignore]

    settings = {
        "spark.jars": jar,
        "spark.serializer": "org.apache.spark.serializer.KryoSerializer",
        "spark.kryo.registrator": "org.apache.spark.HoodieSparkKryoRegistrar",
        "spark.sql.session.timeZone": "UTC",
    }
    spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    for name, kind in {"cow": "COPY_ON_WRITE", "mor": "MERGE_ON_READ"}.items():
        for number, (operation, rows) in enumerate(COMMITS):
            options = {**OPTIONS, "hoodie.datasource.write.operation": operation}
            options["hoodie.datasource.write.table.type"] = kind
            frame = spark.createDataFrame([_row(*row) for row in rows], COLUMNS)
            mode = "append" if number else "overwrite"
            frame.write.format("hudi").options(**options).mode(mode).save(f"{folder}/{name}")


def _row(number: int, customer: str, amount: str, day: int, region: str) -> tuple[Any, ...]:
    changed = datetime(2024, 1, day, 12)
    return number, customer, Decimal(amount), date(2024, 1, number), changed, region


if __name__ == "__main__":
    main(*sys.argv[1:])
