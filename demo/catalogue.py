"""The catalogue: a folder of files, as a merchandising team would drop it."""

from pathlib import Path

import duckdb

from demo import source
from demo.source import report

# A store's size is simulated: formats by its real number of receipts in the year.
STORES = """
    select store_id, 'Store ' || store_id as store_name,
        case when count(distinct basket_id) >= 1000 then 'large'
            when count(distinct basket_id) >= 100 then 'medium' else 'small' end as store_format,
        'America/New_York' as time_zone
    from transactions group by store_id order by store_id
"""
PROMOTIONS = "select product_id, store_id, week, display_location, mailer_location from promotions"


def make(folder: Path) -> None:
    """Write products.csv, stores.json and promotions/promotions_2017_wNN.parquet into `folder`."""
    folder.mkdir()
    with source.connect(threads=1) as session:
        _copy(session, "from products", folder / "products.csv", "format csv, header")
        _copy(session, STORES, folder / "stores.json", "format json, array true")
        _promotions(session, folder / "promotions")


def _promotions(session: duckdb.DuckDBPyConnection, folder: Path) -> None:
    by_week = "format parquet, compression zstd, partition_by (week), write_partition_columns true"
    _copy(session, PROMOTIONS, folder, by_week)
    for partition in sorted(folder.glob("week=*")):
        (file,) = partition.iterdir()
        week = int(partition.name.removeprefix("week="))
        file.rename(folder / f"promotions_2017_w{week:02}.parquet")
        partition.rmdir()


def _copy(session: duckdb.DuckDBPyConnection, rows: str, target: Path, options: str) -> None:
    counted = session.execute(f"copy ({rows}) to $target ({options})", {"target": str(target)})
    (count,) = counted.fetchall()[0]
    report(f"catalogue: {count:>10,} rows in {target.name}")
