"""Building marts of streams when some events came: what it costs hangs on these, not on history.

Ten days and a hundred of a web shop's events are built into marts; then the same two hours of new
ones come, a part of them late. dbt's own time of the five marts is compared.
"""

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.demo_lake import declarations
from benchmarks.harness import RUN, Contender, beside, compare
from tarn.storage.lake import Lake
from tarn.storage.writer import ROW_GROUP_ROWS, write

MARTS = ("fct_web_sessions", "fct_web_orders", "fct_payments", "fct_sign_ups", "fct_deliveries")
VIEWS = (
    *(f"staging.{system}" for system in ("web_shop", "payments", "sign_ups", "vans")),
    "intermediate.online",
)
_TABLES = {
    # Rows a day, and columns by the number of the row, `i`; `due` is when it is due to happen.
    "raw_web_shop.clicks": (
        30_000,
        "'c' || i as event_id, 'v' || hash(i // 5) % 20000 as visitor_id,"
        " cast(null as bigint) as household_id, 'product' as page__type,"
        " i % 5000 as page__product_id, 'GROCERY' as page__department,"
        " cast(null as bigint) as order_id, cast(null as varchar) as referrer,"
        " 'phone' as device, due + to_seconds(40 * (i % 5)) as occurred_at",
        5,
    ),
    "raw_web_shop.orders": (
        4_000,
        "'o' || i as event_id, i // 4 as order_id, i // 4 % 2500 as household_id,"
        " i // 4 % 400 as store_id, ['placed', 'picked', 'dispatched', 'delivered'][i % 4 + 1]"
        " as event_type, cast(12.5 as decimal(12, 2)) as amount, 3::bigint as item_count,"
        " due + interval 3 hour as promised_at, 40.5::double as delivery__latitude,"
        " -74.0::double as delivery__longitude, 'van-' || i // 4 % 50 as van_id,"
        " due + to_minutes(20 * (i % 4)) as occurred_at",
        4,
    ),
    "raw_payments.payments": (
        1_000,
        "'p' || i as payment_id, i as order_id, i % 2500 as household_id,"
        " cast(12.5 as decimal(12, 2)) as amount, 'USD' as currency, 'card' as method,"
        " 'authorized' as status, cast(null as varchar) as reason, 40.5::double as place__latitude,"
        " -74.0::double as place__longitude, due as occurred_at",
        1,
    ),
    "raw_sign_ups.sign_ups": (
        100,
        "'s' || i as sign_up_id, i as household_id, 'a@example.com' as email, 'Troy' as city,"
        " 'search' as channel, due as occurred_at",
        1,
    ),
    "raw_vans.positions": (
        30_000,
        "'van-' || i // 30 % 50 as van_id, i as sequence, 40 + hash(i) % 1000 / 1e4 as latitude,"
        " -74 + hash(i * 7) % 1000 / 1e4 as longitude, 40.0::double as speed_kmh,"
        " 90::bigint as heading, i // 30 as order_id,"
        " due + to_seconds(2400 + 10 * (i % 30)) as occurred_at",
        30,
    ),
}
"""Of each raw table: rows a day, columns, and how many rows in turn belong together."""


def land(lake: Lake, first_day: int, days: float, late: bool = False) -> None:
    """Append so many days of events, spread evenly over them; some of an hour before if late."""
    for name, (daily, columns, together) in _TABLES.items():
        gap = "to_microseconds(cast((i // {0} * {0}) * 86400e6 / {1} as bigint))"
        at = f"timestamp '2017-01-01' + {gap.format(together, daily)}"
        late_by = "to_hours(cast(i % 50 = 0 as bigint))" if late else "to_hours(0)"
        first, last = first_day * daily, first_day * daily + int(days * daily)
        sql = f"""
            select * exclude (loaded), cast(occurred_at as date) as _event_date,
                'load' as _load_id, loaded as _loaded_at
            from (
                select {columns}, '{name}-0' as _partition, i as _offset, due as _sent_at, loaded
                from (
                    select i, {at} - {late_by} as due, date_trunc('minute', {at}) as loaded
                    from range({first}, {last}) as r(i)
                )
            )
        """
        rows = partial(_read, sql)
        write(lake, name, rows, mode="append", partition_by=["_event_date"])


def _read(sql: str) -> pa.RecordBatchReader:
    return duckdb.connect().execute(sql).to_arrow_reader(ROW_GROUP_ROWS)


def project(days: int) -> Path:
    """A project whose marts hold so many days, and whose raw tables two hours more; made once."""
    folder = RUN / f"stream_marts_{days}"
    if not (folder / "made").exists():
        declarations(folder)
        lake = Lake(str(folder / "lake"))
        land(lake, 0, days)
        dbt = [beside("dbt"), "--quiet", "run", "--select"]
        subprocess.run([*dbt, *VIEWS, *MARTS], cwd=folder, check=True)
        land(lake, days, 1 / 12, late=True)
        (folder / "made").touch()
    return folder


def fresh(folder: Path) -> None:
    """Put the lake back as it was; files are linked, for none is changed in place."""
    kept = folder / "lake_before"
    if not kept.exists():
        shutil.copytree(folder / "lake", kept, copy_function=os.link)
    shutil.rmtree(folder / "lake")
    shutil.copytree(kept, folder / "lake", copy_function=os.link)


def seconds(folder: Path) -> float:
    """What dbt's last run says that its models took."""
    ran = json.loads((folder / "target" / "run_results.json").read_text())["results"]
    return sum(float(result["execution_time"]) for result in ran)


def main() -> None:
    """Both histories, in turns."""
    contenders = [
        Contender(
            f"after {days} days",
            [beside("dbt"), "--quiet", "run", "--threads", "1", "--select", *MARTS],
            project(days),
            before=partial(fresh, project(days)),
            inner=partial(seconds, project(days)),
        )
        for days in (10, 100)
    ]
    compare("two hours of events into five marts: the models' time", contenders)


if __name__ == "__main__":
    main()
