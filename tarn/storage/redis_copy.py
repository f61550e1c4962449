"""Hot tables in Redis: each row of the current release as one packed value under its key.

A row of `schema.table` whose key columns are 7 and `x` is the JSON text at
`tarn:<release>:schema.table:[7, "x"]`; `tarn:release` holds the release to read. It changes when
every row is there, so a reader sees one release or another, never a mixture; then the rows of
releases before the last one go. Redis can be emptied at any time: `tarn maintain` fills it again.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from typing import Any

from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage.datafiles import Reader, Rows, data_files
from tarn.storage.lake import Lake
from tarn.storage.releases import Release
from tarn.strict_yaml import nearest

PREFIX = "tarn"
CURRENT = f"{PREFIX}:release"
_ROWS_AT_ONCE = 5_000


def publish(lake: Lake, release: Release) -> None:
    """Put the release's hot tables that name a Redis into it, and switch its readers over.

    Raises TarnError when a Redis cannot be reached; its readers then stay at their release.
    """
    by_address: dict[str, list[str]] = {}
    for name in release.tables:
        policy = lake.policy.of(name)
        if policy.tier == "hot" and policy.hot.redis:
            address = settings().expand(policy.hot.redis, f"storage.yml: {name}: hot.redis")
            by_address.setdefault(address, []).append(name)
    for address, names in by_address.items():
        _fill(lake, release, address, names)


def key(release: int, name: str, values: Sequence[Any]) -> str:
    """Where the row of a table with these key values is."""
    return f"{PREFIX}:{release}:{name}:{_packed(list(values))}"


def _fill(lake: Lake, release: Release, address: str, names: Sequence[str]) -> None:
    try:
        import redis
    except ImportError:
        raise TarnError(
            "storage.yml names a Redis, but its client is not installed", fix="pip install redis"
        ) from None
    try:
        with redis.Redis.from_url(address) as client:
            before = int(client.get(CURRENT) or 0)
            if before == release.number:
                return
            for name in names:
                for rows in _in_parts(_rows(lake, release, name)):
                    client.mset(dict(rows))
            client.set(CURRENT, release.number)
            _drop(client, keep={release.number, before})
    except redis.RedisError as error:
        # The address may hold a password, so it is not repeated.
        raise TarnError(
            f"Redis: {error}",
            "storage.yml: hot.redis",
            "its readers stay at their release; when it is up again, run tarn maintain",
        ) from error


def _rows(lake: Lake, release: Release, name: str) -> Iterator[tuple[str, str]]:
    table = lake.table(name, release.tables[name].version)
    assert table is not None
    columns = lake.policy.of(name).hot.key
    known = [field.name for field in table.schema().fields]
    for column in columns:
        if column not in known:
            raise TarnError(f"hot.key: no column {column!r}{nearest(column, known)}", name)
    files = tuple(data_files(table))
    seen: set[str] = set()
    for batch in Rows(table, Reader.of(lake, name), files).batches():
        for row in batch.to_pylist():
            at = key(release.number, name, [row[column] for column in columns])
            if at in seen:
                raise TarnError(
                    f"two rows have the key {at}", name, "correct hot.key in storage.yml"
                )
            seen.add(at)
            yield at, _packed(row)


def _in_parts(rows: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        yield part


def _drop(client: Any, keep: set[int]) -> None:
    """Delete the rows of other releases; the last one's stay for readers in the middle of it."""
    kept = tuple(f"{PREFIX}:{number}:".encode() for number in keep)
    old = (
        found
        for found in client.scan_iter(f"{PREFIX}:*:*", count=_ROWS_AT_ONCE)
        if not found.startswith(kept)
    )
    while part := list(islice(old, _ROWS_AT_ONCE)):
        client.unlink(*part)


def _packed(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: object) -> object:
    """Decimals as text, so that no digit is lost; times in ISO 8601; bytes in base 64."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"no text for a {type(value).__name__}")
