"""What a finished dbt run publishes: nothing unless every node of a `dbt build` is green."""

from collections.abc import Mapping
from typing import Any

from tarn.errors import TarnError
from tarn.settings import settings
from tarn.storage import catalog, releases
from tarn.storage.lake import Lake
from tarn.storage.releases import Pin, Release
from tarn.storage.writer import Written

GREEN = {"success", "pass", "warn", "no-op"}
_STORED = ("model", "seed", "snapshot")


def publish(
    lake: Lake,
    run: Mapping[str, Any],
    pinned: Mapping[str, int],
    written: Mapping[str, Written],
    before: Release | None,
) -> str:
    """Publish the tables of a green build, and say in one line what became of it.

    run: `command`, `rehearsal`, `invocation`, dbt's `results`, and its graph as `nodes` and
    `sources`. pinned: version of each table as the run read it.
    before: the current release when the run began; tables the run did not build keep their
    version of it. Raises TarnError when somebody else published since.
    """
    if run["command"] != "build" or run["rehearsal"]:
        return ""
    red = [result for result in run["results"] if str(result.status) not in GREEN]
    if red:
        return f"No release: {len(red)} of {len(run['results'])} nodes failed or were skipped."
    if not written:
        return ""
    tables = _tables(lake, run, pinned, written, before)
    made_by = {"dbt_invocation": run["invocation"], "git_revision": settings().git_revision}
    release = releases.publish(lake, tables, before, made_by)
    catalog.build(lake, release)
    return f"Release {release.number}: {len(written)} tables new, {len(tables)} in all."


def _tables(
    lake: Lake,
    run: Mapping[str, Any],
    pinned: Mapping[str, int],
    written: Mapping[str, Written],
    before: Release | None,
) -> dict[str, Pin]:
    nodes = {
        f"{node['schema']}.{node['alias']}"
        for node in run["nodes"].values()
        if node["resource_type"] in _STORED
    }
    schemas = {name.partition(".")[0] for name in nodes}
    kept = before.tables if before else {}
    # A table of dbt's schemas that no node makes any more leaves with its declaration.
    tables = {n: pin for n, pin in kept.items() if n in nodes or n.partition(".")[0] not in schemas}
    read = _sources_read(run)
    for name, version in pinned.items():
        ours = name.partition(".")[0] in schemas
        if name in written:
            tables[name] = _pin(lake, name, written[name].version)
        elif not ours and (name in read or name not in tables):
            tables[name] = _pin(lake, name, version)
    return tables


def _sources_read(run: Mapping[str, Any]) -> set[str]:
    """Names of the source tables that the run's nodes were made from, however far up."""
    nodes, sources = run["nodes"], run["sources"]
    waiting = [result.node.unique_id for result in run["results"]]
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += nodes.get(node, {}).get("depends_on", {}).get("nodes", ())
    return {
        f"{source['schema']}.{source['identifier']}"
        for unique_id, source in sources.items()
        if unique_id in seen
    }


def _pin(lake: Lake, name: str, version: int) -> Pin:
    table = lake.table(name, version)
    if table is None:
        raise TarnError("the table vanished while the build ran", name, "build again")
    return Pin.of(table)
