"""Kafka into the lake: throughput and what exactly-once costs of it, time until an event can be
queried, memory over ten minutes, and what a day of one-second commits leaves for readers."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Thread

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Producer
from deltalake import DeltaTable

from benchmarks.harness import CONSOLE, RUN, TARN, Contender, compare, in_project, project, python
from tarn.ingestion.streams import positions
from tarn.ingestion.streams.tidying import Tidier
from tarn.storage.duck import select_from
from tarn.storage.lake import Lake
from tarn.storage.writer import write
from tests.engine.apache_kafka import Kafka, running_kafka

MESSAGES = 3_000_000
PARTITIONS = 4
_DAY = 86_400
_GROUP = {"group.id": "plain", "auto.offset.reset": "earliest", "enable.auto.commit": False}


def message(number: int) -> bytes:
    """About 150 bytes of a web shop."""
    event = {
        "event_id": number,
        "visitor": f"visitor {number % 9973}",
        "page": {"type": "product", "product_id": number % 92331},
        "amount": number % 10000 / 100,
        "sent": time.time(),
    }
    return json.dumps(event, separators=(",", ":")).encode()


def produce(kafka: Kafka, topic: str, messages: int, rate: int | None = None) -> None:
    """Send so many, as fast as can be or so many a second."""
    options = {"linger.ms": 5 if rate else 50, "queue.buffering.max.messages": 1_000_000}
    producer = Producer({"bootstrap.servers": kafka.address, **options})
    began = time.monotonic()
    for number in range(messages):
        while True:
            try:
                producer.produce(topic, message(number), partition=number % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
        if rate and number % 50 == 0:
            producer.poll(0)
            time.sleep(max(0, began + number / rate - time.monotonic()))
    producer.flush()


def declared(kafka: Kafka, name: str, topic: str, more: str = "", system: str = "shop") -> Path:
    """A project that reads one topic."""
    return project(
        f"streams_{name}",
        system,
        f"kind: kafka\nconnection: {{bootstrap_servers: '{kafka.address}'}}\n"
        f"tables:\n  events: {{topic: {topic}, write: append{more}}}",
    )


def throughput(kafka: Kafka) -> None:
    """All that waits, whole process."""
    kafka.create("clicks", PARTITIONS)
    produce(kafka, "clicks", MESSAGES)
    ways = [
        Contender("read, and thrown away", python("benchmarks.streams", "plain", kafka.address)),
        _once(kafka, "careless", "without positions", python("benchmarks.streams", "careless")),
        _once(kafka, "once", "tarn stream --once", [*TARN, "stream", "--once"]),
        _once(
            kafka,
            "keyed",
            "the same, by key",
            [*TARN, "stream", "--once"],
            ", primary_key: [event_id]",
        ),
    ]
    compare(f"{MESSAGES / 1e6:g} million messages of 150 bytes, whole process", ways, rounds=3)
    for way in ways:
        CONSOLE.print(f" {way.name}: {MESSAGES / statistics.median(way.seconds):,.0f} messages/s")
    cost = statistics.median(ways[2].seconds) / statistics.median(ways[1].seconds) - 1
    CONSOLE.print(f" exactly once costs {cost:.1%}\n")


def _once(
    kafka: Kafka, system: str, told: str, command: Sequence[str], more: str = ""
) -> Contender:
    # Each in a consumer group of its own: they are not to wait for one another.
    folder = declared(kafka, system, "clicks", more, system)
    way = Contender(told, command, cwd=folder, environment=in_project(folder))
    way.before = lambda: shutil.rmtree(folder / "lake", ignore_errors=True)
    return way


def plain(address: str) -> None:
    """The limit: read by the same client in as large pieces."""
    consumer = Consumer({**_GROUP, "bootstrap.servers": address, "fetch.min.bytes": 100_000})
    consumer.subscribe(["clicks"])
    read = 0
    while read < MESSAGES:
        read += len([each.value() for each in consumer.consume(20_000, 0.1)])


def careless() -> None:
    """Our own consumer, but its commits say nothing of positions, and nothing is compared."""
    from tarn.cli import main

    for name in ("transactions", "fence"):
        setattr(positions, name, lambda partitions: {})
    sys.argv = ["tarn", "stream", "--once"]
    main()


@contextmanager
def streaming(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`tarn stream`, until the end of the block."""
    with subprocess.Popen(
        [*TARN, "stream"], cwd=folder, env={**os.environ, **in_project(folder)}
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def latency(kafka: Kafka, rate: int = 5_000, seconds: int = 60) -> None:
    """From the sending of an event until a query over the table's latest version gives it."""
    kafka.create("orders", PARTITIONS)
    folder = declared(kafka, "latency", "orders", ", commit_every: 1s")
    watched = _Watched(folder / "lake/raw_shop/events")
    with streaming(folder):
        produce(kafka, "orders", PARTITIONS)
        watched.wait(PARTITIONS)
        watched.ages.clear()
        sender = Thread(target=produce, args=(kafka, "orders", rate * seconds, rate))
        sender.start()
        watched.wait(rate * seconds)
        sender.join()
    ages = sorted(watched.ages.values())
    told = ", ".join(f"p{p} {ages[len(ages) * p // 100]:.2f} s" for p in (50, 95, 99))
    CONSOLE.print(f"Event to queryable at {rate:,}/s, commit_every: 1s\n {told}\n")


class _Watched:
    """A table that is queried as often as it changes."""

    def __init__(self, table: Path) -> None:
        self.table, self.version, self.since = table, -1, datetime.min
        self.ages: dict[tuple[str, int], float] = {}
        """Seconds, by partition and offset."""

    def wait(self, rows: int) -> None:
        """Until so many have been seen."""
        while len(self.ages) < rows:
            time.sleep(0.02)
            if DeltaTable.is_deltatable(str(self.table)):
                self._look(DeltaTable(self.table))

    def _look(self, table: DeltaTable) -> None:
        if table.version() == self.version:
            return
        self.version = table.version()
        columns = "_partition, _offset, sent, _loaded_at"
        sql = f"select {columns} from ({select_from(table)}) where _loaded_at >= ?"
        with duckdb.connect() as connection:
            rows = connection.execute(sql, [self.since]).fetchall()
        at = time.time()
        for partition, offset, sent, _ in rows:
            self.ages.setdefault((partition, offset), at - sent)
        self.since = max([self.since, *(row[3] for row in rows)])


def memory(kafka: Kafka, rate: int = 20_000, minutes: int = 10) -> None:
    """Resident memory of a stream that goes on, by minute."""
    kafka.create("views", PARTITIONS)
    folder = declared(kafka, "memory", "views", ", commit_every: 1s, primary_key: [event_id]")
    sender = Thread(target=produce, args=(kafka, "views", rate * 60 * minutes, rate))
    found: list[float] = []
    with streaming(folder) as process:
        sender.start()
        while sender.is_alive():
            sender.join(60)
            status = Path(f"/proc/{process.pid}/status").read_text()
            found.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
    CONSOLE.print(f"Memory at {rate:,}/s by key, by minute")
    CONSOLE.print(f" MB {', '.join(f'{each:,.0f}' for each in found)}\n")


def files(commits: int = _DAY) -> None:
    """A day of commits by the writer and the tidier of streams, then a scan."""
    folder = RUN / "streams_files"
    shutil.rmtree(folder, ignore_errors=True)
    lake, name = Lake(str(folder / "lake")), "raw_shop.events"
    tidier, before = Tidier(lake), {"events-0": positions.Held()}
    for number in range(commits):
        after = {"events-0": positions.numbers((number + 1) * 100, before["events-0"])}
        rows = pa.table({"event_id": pa.arange(number * 100, number * 100 + 100)})
        marks, fence = positions.transactions(after), positions.fence(before)
        write(lake, name, rows, mode="append", transactions=marks, fence=fence)
        tidier.committed(name)
        before = after
    tidier.close()
    whole = folder / "whole"
    table = lake.table(name)
    assert table is not None
    duckdb.execute(f"copy ({select_from(table)}) to '{whole}.parquet'")
    write(Lake(str(whole)), name, pq.read_table(f"{whole}.parquet"), mode="append")
    CONSOLE.print(f"{commits:,} commits have left {len(table.file_uris()):,} files")
    scans = [
        Contender(told, python("benchmarks.streams", "scan", root))
        for told, root in (("compacted", str(whole)), ("as streamed", lake.root))
    ]
    for each in scans:
        each.inner = lambda: float((folder / "seconds").read_text())
    compare("A scan, its own time", scans)


def scan(root: str) -> None:
    """Sum up the table."""
    began = time.perf_counter()
    table = Lake(root).table("raw_shop.events")
    assert table is not None
    duckdb.execute(f"select sum(event_id) from ({select_from(table)})").fetchall()
    (RUN / "streams_files/seconds").write_text(str(time.perf_counter() - began))


PARTS: Mapping[str, Callable[[Kafka], None]] = {
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
}


def main(names: Sequence[str]) -> None:
    """The parts named, or all."""
    for name in names or (*PARTS, "files"):
        if name == "files":
            files()
        else:
            with running_kafka() as kafka:
                PARTS[name](kafka)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["plain", address]:
            plain(address)
        case ["careless"]:
            careless()
        case ["scan", root]:
            scan(root)
        case names:
            main(names)
