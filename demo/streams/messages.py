"""The burst: what brokers hold when they start.

Brokers in memory forget; real ones do not. What `python -m demo stream` sends to the brokers
whose readers keep a position is therefore written down, and is part of the next burst: readers
find the same messages at the same place.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import duckdb

FOLDER = "streams"
SENT = "streams.sent"
TIMEOUT_SECONDS = 10
"""A broker on this machine that has not answered by then is gone."""


class Message(NamedTuple):
    topic: str
    key: str
    value: str


def burst(run: Path, *topics: str) -> list[Message]:
    """All messages of topics, in the order of sending within each."""
    made: list[Message] = []
    with duckdb.connect(config={"threads": 1}) as session:
        for topic in topics:
            rows = session.read_parquet(str(run / FOLDER / f"{topic}.parquet"))
            pairs = rows.order("number").project("key, value").fetchall()
            made += [Message(topic, key, value) for key, value in pairs]
    return made + [each for each in _written(run / SENT) if each.topic in topics]


def write_down(run: Path, messages: Iterable[Message]) -> None:
    """Remember messages beyond the life of brokers; before they are sent, so that none is not."""
    with (run / SENT).open("a") as file:
        file.writelines(f"{json.dumps(message)}\n" for message in messages)


def _written(file: Path) -> list[Message]:
    if not file.exists():
        return []
    # A line that a kill cut off was not sent.
    lines = file.read_text().splitlines(keepends=True)
    return [Message(*json.loads(line)) for line in lines if line.endswith("\n")]
