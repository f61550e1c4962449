"""What a finished dbt run publishes: nothing unless every node of a `dbt build` is green."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tarn.dbt.graph import sources_of
from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage import catalog, releases
from tarn.storage.lake import HISTORY, Lake
from tarn.storage.releases import Pin, Release
from tarn.storage.writer import Written

GREEN = {"success", "pass", "warn", "no-op"}
_STORED = ("model", "seed", "snapshot")


@dataclass(frozen=True)
class Build:
    """What one dbt process read and wrote."""

    pinned: Mapping[str, int]
    """Version of each table as it was read."""
    written: Mapping[str, Written]
    before: Release | None
    """The current release when it began."""
    rebuilt: Release | None = None
    """The release whose raw tables and snapshots it read, instead of the latest."""
    kept: Mapping[str, Set[str]] = field(default_factory=dict)
    """Tables left as they are, and the source tables whose drift blocks them."""


def publish(lake: Lake, run: Mapping[str, Any], build: Build) -> str:
    """Publish the tables of a green build, and say in one line what became of it.

    run: `command`, `rehearsal`, `invocation`, dbt's `results`, and its graph as `nodes` and
    `sources`. Tables the run did not build keep the version they have in the release before.
    Raises TarnError when somebody else published since.
    """
    if run["command"] != "build" or run["rehearsal"]:
        return ""
    red = [result for result in run["results"] if str(result.status) not in GREEN]
    if red:
        return f"No release: {len(red)} of {len(run['results'])} nodes failed or were skipped."
    made_by = {"dbt_invocation": run["invocation"]}
    if revision := settings().git_revision:
        made_by["git_revision"] = revision
    if build.rebuilt:
        made_by["rebuilt_from_release"] = str(build.rebuilt.number)
    upon = _upon(lake, build.before)
    tables = _tables(lake, run, build, build.rebuilt or upon)
    if upon is not None and _without_history(tables) == _without_history(upon.tables):
        # That somebody has looked and found nothing is no news to readers.
        tables = dict(upon.tables)
    release = releases.publish(lake, tables, upon, made_by)
    if upon is not None and release.number == upon.number:
        # Whoever published it may have been killed before the catalog showed it.
        catalog.ensure(lake)
        return f"Nothing changed: release {release.number} stays.{_kept(build)}"
    catalog.build(lake, release)
    new = [name for name, pin in tables.items() if not upon or upon.tables.get(name) != pin]
    return f"Release {release.number}: {len(new)} tables new, {len(tables)} in all.{_kept(build)}"


def _kept(build: Build) -> str:
    """What stays as it was before, and why."""
    if not build.kept:
        return ""
    blocks = ", ".join(sorted(set().union(*build.kept.values())))
    return f" Kept as before: {', '.join(sorted(build.kept))}; drift blocks {blocks} (tarn drift)."


def _upon(lake: Lake, before: Release | None) -> Release | None:
    """The release to publish upon: the one before the build, or what upkeep made of it since."""
    if before is None:
        return None
    newest_first = releases.releases(lake)
    since = list(takewhile(lambda one: one.number > before.number, newest_first))
    return since[0] if since and all("upkeep" in one.made_by for one in since) else before


def _tables(
    lake: Lake, run: Mapping[str, Any], build: Build, base: Release | None
) -> dict[str, Pin]:
    ours = [n for n in run["nodes"].values() if n["resource_type"] in (*_STORED, "test")]
    schemas = {node["schema"] for node in ours}
    nodes = {f"{node['schema']}.{node['alias']}" for node in ours if _is_table(node)}
    kept = base.tables if base else {}
    before = build.before.tables if build.before else {}
    # A table of dbt's schemas that no node makes any more leaves with its declaration; so does
    # one whose model has become a view.
    tables = {n: pin for n, pin in kept.items() if n in nodes or n.partition(".")[0] not in schemas}
    read = sources_of(run, [result.node.unique_id for result in run["results"]])
    waited_for = sources_of(run, run["nodes"]) - read
    for name, version in build.pinned.items():
        foreign = name.partition(".")[0] not in schemas
        if name in build.written:
            tables[name] = _pin(lake, name, build.written[name].version)
        elif name in tables and name in before and before[name].version == version:
            continue  # What it read is what the release has, if in files that upkeep made since.
        elif foreign and (name not in waited_for or name not in tables):
            # A source stays with the models made of it until they are built; others are free.
            tables[name] = _pin(lake, name, version)
    return tables


def _without_history(tables: Mapping[str, Pin]) -> dict[str, Pin]:
    return {name: pin for name, pin in tables.items() if not name.startswith(HISTORY)}


def _is_table(node: Mapping[str, Any]) -> bool:
    """Whether a node's rows are a table that releases hold; rows that failed a test never are."""
    config = node["config"]
    in_lake = config.get("file_format") == "delta"
    return in_lake and config["materialized"] not in ("view", "ephemeral", "test")


def _pin(lake: Lake, name: str, version: int) -> Pin:
    table = lake.table(name, version)
    if table is None:
        raise TarnError("the table vanished while the build ran", name, "build again")
    return Pin.of(table)
