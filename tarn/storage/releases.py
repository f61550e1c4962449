"""Releases: which version of each table readers see. One small JSON file each, never changed.

The current release is the one with the highest number, so publishing is a single write that
succeeds only if that number is still free, on disk as on S3. A rollback publishes an older
release's tables again under the next number: instant, and itself undone by another rollback.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
from deltalake import DeltaTable
from obstore.exceptions import AlreadyExistsError

from tarn.errors import TarnError
from tarn.storage.lake import OWN_SCHEMA, Lake
from tarn.storage.rows import row_count

FOLDER = f"{OWN_SCHEMA}/releases"


@dataclass(frozen=True)
class Pin:
    """One table as a release holds it."""

    version: int
    rows: int
    schema: str
    """Fingerprint of column names and types, in order."""

    @classmethod
    def of(cls, table: DeltaTable) -> "Pin":
        """The table as it is now, from its log alone."""
        columns = [f"{field.name} {field.type}" for field in pa.schema(table.schema().to_arrow())]
        fingerprint = hashlib.sha256("\n".join(columns).encode()).hexdigest()[:16]
        return cls(table.version(), row_count(table), fingerprint)


@dataclass(frozen=True)
class Release:
    """A set of table versions that agree with each other."""

    number: int
    tables: Mapping[str, Pin]
    """By `schema.table`."""
    made_at: str
    """UTC, ISO 8601."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """What published it: dbt invocation, git revision, rollback_to."""


def pinned(lake: Lake, name: str, pin: Pin) -> DeltaTable:
    """A table as a release holds it."""
    table = lake.table(name, pin.version)
    if table is None:
        raise TarnError("a release names this table, but it is gone", lake.uri(name))
    return table


def numbers(lake: Lake) -> list[int]:
    """Numbers of the releases kept, oldest first."""
    names = (entry["path"].rpartition("/")[2] for entry in lake.files(FOLDER))
    return sorted(int(name.removesuffix(".json")) for name in names if name[:-5].isdigit())


def releases(lake: Lake) -> Iterator[Release]:
    """The releases kept, newest first."""
    return (read(lake, number) for number in reversed(numbers(lake)))


def current(lake: Lake) -> Release | None:
    """The release that readers see; None before the first."""
    return next(releases(lake), None)


def read(lake: Lake, number: int) -> Release:
    """One release by its number."""
    try:
        content = json.loads(bytes(lake.objects.get(_path(number)).bytes()))
    except FileNotFoundError:
        kept = numbers(lake)
        have = f"kept are {kept[0]} to {kept[-1]}" if kept else "there is none yet"
        raise TarnError(f"no release {number}", fix=f"{have}; see tarn release list") from None
    tables = {name: Pin(**pin) for name, pin in content.pop("tables").items()}
    return Release(tables=tables, **content)


def publish(
    lake: Lake, tables: Mapping[str, Pin], after: Release | None, made_by: Mapping[str, str]
) -> Release:
    """Make `tables` what readers see, provided `after` is still the current release.

    Publishes nothing, and gives `after` back, when no table differs from it.
    Raises TarnError when somebody else published in the meantime.
    """
    if after is not None and dict(after.tables) == dict(tables):
        return after
    number = after.number + 1 if after else 1
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    release = Release(number, dict(sorted(tables.items())), made_at, made_by)
    content = json.dumps(asdict(release), indent=1).encode()
    try:
        lake.objects.put(_path(number), content, mode="create")
    except AlreadyExistsError:
        raise TarnError(
            f"release {number} was published by somebody else while this build ran",
            fix="nothing of this build is visible to readers; build again",
        ) from None
    return release


def rollback(lake: Lake, number: int | None = None) -> Release:
    """Publish release `number`'s tables again; without one, those of the release before."""
    now = current(lake)
    if now is None:
        raise TarnError("nothing to roll back: there is no release yet")
    target = read(lake, now.number - 1 if number is None else number)
    return publish(lake, target.tables, now, {"rollback_to": str(target.number)})


def forget(lake: Lake, number: int) -> None:
    """Delete a release, so that upkeep need not keep its versions. Never the current one."""
    if number == numbers(lake)[-1]:
        raise TarnError(f"release {number} is what readers see", fix="publish another one first")
    lake.objects.delete(_path(number))


@dataclass(frozen=True)
class Difference:
    """What changed in one table between two releases; None stands for a table not there."""

    name: str
    before: Pin | None
    after: Pin | None

    @property
    def kind(self) -> str:
        if self.before is None or self.after is None:
            return "added" if self.before is None else "removed"
        return "columns" if self.before.schema != self.after.schema else "rows"


def diff(before: Release, after: Release) -> list[Difference]:
    """The tables that are not the same version in both releases."""
    names = sorted({*before.tables, *after.tables})
    pairs = [Difference(name, before.tables.get(name), after.tables.get(name)) for name in names]
    return [pair for pair in pairs if pair.before != pair.after]


def _path(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"
