"""A small lake with streams and a live page over it, and a server of such pages."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import uvicorn
import yaml

from tarn.serving.live.drawing import Page
from tarn.serving.live.server import app, pages_of
from tarn.serving.metrics import MetricCompiler
from tarn.settings import Settings
from tarn.storage import releases, views
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin
from tarn.storage.writer import write

TOKEN = "a-token-of-ours"  # noqa: S105
NOW = "cast(current_timestamp as timestamp)"
TILES: list[dict[str, Any]] = [
    {
        "title": "Sales in the last minute",
        "kind": "figure",
        "sql": f"select count(*) from staging.sales where sold_at > {NOW} - interval 1 minute",
        "format": ",.0f",
    },
    {
        "title": "Sales a minute",
        "kind": "chart",
        "width": 9,
        "sql": "select minute, sales from outputs.rpt_sales order by minute",
        "spec": {
            "height": 180,
            "mark": {"type": "area", "line": True},
            "encoding": {
                "x": {"field": "minute", "type": "temporal", "axis": {"title": None}},
                "y": {"field": "sales", "type": "quantitative", "axis": {"title": None}},
            },
        },
    },
    {
        "title": "Couriers",
        "kind": "map",
        "width": 8,
        "sql": "select courier, latitude, longitude, heading, state from outputs.rpt_couriers",
        "label": "courier",
        "colour": "state",
        "colours": {"returning": "muted"},
        "heading": "heading",
        "trail": "select courier, latitude, longitude from staging.places order by seen_at",
        "places": "select name as label, latitude, longitude from marts.dim_depots",
    },
    {"title": "Alerts", "kind": "alerts", "width": 4},
    {
        "title": "Last sales",
        "kind": "table",
        "width": 12,
        "sql": "from staging.sales order by sold_at desc, sale_id desc limit 5",
        "format": {"amount": "$,.2f", "sold_at": "%H:%M:%S"},
    },
]
VIEWS = {
    "staging.sales": "select sale_id, amount, sold_at from raw_shop.sales",
    "staging.places": "select * exclude (_partition) from raw_bikes.places",
    "outputs.rpt_sales": "select date_trunc('minute', sold_at) as minute, count(*) as sales"
    " from staging.sales group by all",
    "outputs.rpt_couriers": "select * from staging.places"
    " qualify row_number() over (partition by courier order by seen_at desc) = 1",
}


class Shop:
    """A lake with a release, to which events are added."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sold, self.seen = folder, 0, 0
        (folder / "lake").mkdir(parents=True, exist_ok=True)
        self.lake = Lake(str(folder / "lake"), work_dir=folder / ".tarn")
        self.home = Settings(folder, self.lake.root, folder / ".tarn", {})

    def fill(self) -> None:
        """What is there before a page is opened."""
        for minutes in range(30, 0, -1):
            self.sell(3 + minutes % 4, datetime.now(UTC) - timedelta(minutes=minutes))
        for step in range(6):
            for number in range(8):
                self.move(f"bike-{number}", step, number)
        depots = {
            "name": ["North", "South"],
            "latitude": [52.54, 52.49],
            "longitude": [13.38, 13.43],
        }
        write(self.lake, "marts.dim_depots", pa.table(depots), mode="replace")
        for name, sql in VIEWS.items():
            views.remember(self.lake, name, sql)
        self.publish()

    def replace(self, name: str, **columns: Sequence[object]) -> None:
        """A table that is built, and its release."""
        write(self.lake, name, pa.table(columns), mode="replace")
        self.publish()

    def publish(self) -> None:
        tables = {name: self.lake.table(name) for name in self.lake.names()}
        pins = {name: Pin.of(table) for name, table in tables.items() if table}
        releases.publish(self.lake, pins, releases.current(self.lake), {})

    def sell(self, count: int = 1, at: datetime | None = None) -> None:
        at = at or datetime.now(UTC)
        ids = range(self.sold, self.sold + count)
        self.sold += count
        self._stream(
            "raw_shop.sales",
            sale_id=[f"S{each}" for each in ids],
            amount=[3.5 + each % 7 for each in ids],
            sold_at=[at.replace(tzinfo=None)] * count,
        )

    def move(self, courier: str, step: int, number: int = 0) -> None:
        self.seen += 1
        self._stream(
            "raw_bikes.places",
            courier=[courier],
            latitude=[52.5 + number * 0.006 + step * 0.002],
            longitude=[13.36 + number * 0.012 + step * 0.004 * (number % 3 - 1)],
            heading=[45 * (number % 3)],
            state=["returning" if number % 3 else "delivering"],
            seen_at=[datetime(2026, 1, 1) + timedelta(seconds=self.seen)],
        )

    def alert(self, change: str, sequence: int, severity: str = "critical") -> None:
        """A row of the journal that alerts keep."""
        at = datetime.now(UTC).replace(tzinfo=None)
        row = {
            "alert": "no_sales", "sequence": sequence, "change": change, "condition": "value",
            "severity": severity, "title": "Sales", "message": f"{change}: 0 in 5m; 3 expected",
            "happened_at": at, "opened_at": at,
        }  # fmt: skip
        write(self.lake, "tarn.alerts", pa.table({k: [v] for k, v in row.items()}), mode="append")

    def _stream(self, name: str, **columns: Sequence[object]) -> None:
        rows = len(next(iter(columns.values())))
        more = {
            "_partition": ["0"] * rows,
            "_offset": [self.seen + self.sold] * rows,
            "_sent_at": [datetime.now(UTC).replace(tzinfo=None)] * rows,
        }
        write(self.lake, name, pa.table({**columns, **more}), mode="append")

    def pages(self, tiles: Sequence[Mapping[str, Any]] = TILES, **run: Any) -> list[Page]:
        """The live page of these tiles."""
        return self.pages_of(self.declare(**{"tiles": tiles, **run}))

    def pages_of(self, manifest: Mapping[str, Any]) -> list[Page]:
        return pages_of(manifest, self.home, MetricCompiler(self.folder / "none.json"))

    def declare(self, **run: Any) -> dict[str, Any]:
        """Write the exposure, and give the manifest that dbt would make of it."""
        run = {
            "kind": "live", "page": "shop", "title": "The shop now", "refresh": "1s",
            "tiles": TILES, **run,
        }  # fmt: skip
        run["tiles"] = list(run["tiles"])
        file = "models/exposures/shop.yml"
        owner = {"name": "Operations"}
        exposure = {"name": "shop", "type": "dashboard", "owner": owner}
        exposure["config"] = {"meta": {"run": run}}
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / file).write_text(yaml.safe_dump({"exposures": [exposure]}, sort_keys=False))
        sources = {
            f"source.{schema}.{name}": {"schema": schema, "identifier": name}
            for schema, name in (("raw_shop", "sales"), ("raw_bikes", "places"))
        }
        node = {
            **exposure,
            "unique_id": "exposure.hills.shop",
            "original_file_path": file,
            "depends_on": {"nodes": list(sources)},
        }
        return {
            "exposures": {node["unique_id"]: node},
            "sources": sources,
            "parent_map": {node["unique_id"]: list(sources)},
        }


@contextmanager
def served(pages: list[Page], lake: Lake, port: int = 0, token: str = TOKEN) -> Iterator[str]:
    """The address of a server of these pages."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    config = uvicorn.Config(
        app(pages, lake, token), log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
