"""Which models and exposures use a column of a source, by colibri's column lineage."""

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from dbt_colibri.lineage_extractor.extractor import (  # type: ignore[import-untyped]
    DbtColumnLineageExtractor,
)

log = logging.getLogger(__name__)

_ROWS = "__colibri_"
"""Begins the name of what stands for a model's rows: a column in a filter or join decides them."""


@dataclass(frozen=True)
class Users:
    """Who would notice that a column has changed, nearest first."""

    models: tuple[str, ...] = ()
    exposures: tuple[str, ...] = ()


class Lineage:
    """The column lineage of a documented project."""

    def __init__(self, target: Path) -> None:
        """target holds dbt's manifest, with compiled SQL, and catalog."""
        manifest, catalog = str(target / "manifest.json"), str(target / "catalog.json")
        self.extractor = DbtColumnLineageExtractor(manifest, catalog)
        self.manifest: Mapping[str, Any] = json.loads(Path(manifest).read_text(encoding="utf-8"))

    def users(self, table: str, column: str) -> Users:
        """Who uses a column of `schema.table`, a source; nobody if dbt does not know it."""
        reached = self._reached((self._sources.get(table, ""), column.lower()))
        nodes = [node for node in reached if node in self.manifest["nodes"]]
        exposures = [
            exposure["name"]
            for exposure in self.manifest["exposures"].values()
            if set(exposure["depends_on"]["nodes"]) & set(nodes)
        ]
        names = [self.manifest["nodes"][node]["name"] for node in nodes]
        return Users(tuple(names), tuple(sorted(exposures)))

    def _reached(self, start: tuple[str, str]) -> list[str]:
        """The nodes that a column flows into, in the order in which it reaches them."""
        seen, waiting = {start}, [start]
        for node, column in waiting:
            columns = self._children.get(node, {})
            # What decides which rows there are decides every column.
            names = list(columns) if column.startswith(_ROWS) else [column]
            for name in names:
                fresh = [child for child in columns.get(name, ()) if child not in seen]
                seen.update(fresh)
                waiting += dict.fromkeys(fresh)
        return list(dict.fromkeys(node for node, _ in waiting[1:]))

    @cached_property
    def _children(self) -> Mapping[str, Mapping[str, list[tuple[str, str]]]]:
        """By node and column, lower case: the columns of other nodes that are made of it."""
        with one_warning("colibri", "column lineage is incomplete"):
            found = self.extractor.extract_project_lineage()["lineage"]["children"]
        children: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(dict)
        for node, columns in found.items():
            for column, made in columns.items():
                edges = [(each["dbt_node"], each["column"].lower()) for each in made]
                children[node].setdefault(column.lower(), []).extend(edges)
        return children

    @cached_property
    def _sources(self) -> Mapping[str, str]:
        sources = self.manifest["sources"]
        return {f"{each['schema']}.{each['identifier']}": key for key, each in sources.items()}


@contextmanager
def one_warning(library: str, what: str) -> Iterator[None]:
    """Say once, with a count and an example, what a library says of each column."""
    theirs, said = logging.getLogger(library), BufferingHandler(sys.maxsize)
    said.setLevel(logging.WARNING)
    theirs.propagate = False
    theirs.addHandler(said)
    try:
        yield
    finally:
        theirs.removeHandler(said)
        theirs.propagate = True
    if said.buffer:
        log.warning("%s, %d times: %s", what, len(said.buffer), said.buffer[0].getMessage())
