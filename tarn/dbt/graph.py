"""Questions about dbt's graph: a mapping with its `nodes` and `sources` by unique id."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any


def sources_of(graph: Mapping[str, Any], nodes: Iterable[str]) -> set[str]:
    """`schema.table` of the source tables that nodes are made from, however far up."""
    waiting, seen = list(nodes), set[str]()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += _parents(graph, node)
    return {relation(graph, node) for node in seen & graph["sources"].keys()}


def tables_read(graph: Mapping[str, Any], node: str, tables: Collection[str]) -> set[str]:
    """Of `tables`, those that a node reads, itself or through views."""
    waiting, read = _parents(graph, node), set[str]()
    while waiting:
        parent = waiting.pop()
        if (name := relation(graph, parent)) in tables:
            read.add(name)
        else:
            waiting += _parents(graph, parent)
    return read


def relation(graph: Mapping[str, Any], node: str) -> str:
    """`schema.table` of a node or source."""
    if source := graph["sources"].get(node):
        return f"{source['schema']}.{source['identifier']}"
    return "{schema}.{alias}".format_map(graph["nodes"][node])


def _parents(graph: Mapping[str, Any], node: str) -> list[str]:
    parents = graph["nodes"].get(node, {}).get("depends_on", {}).get("nodes", ())
    return [p for p in parents if p in graph["nodes"] or p in graph["sources"]]
