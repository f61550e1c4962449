"""The site's first page: what the lake holds in a release, and every output there is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from tarn.errors import TarnError
from tarn.serving import pages
from tarn.serving.declarations import Dashboard, Docs, Exposure
from tarn.serving.formats import show

_FIRST = ("marts", "outputs", "snapshots", "seeds")
"""Schemas in the order a reader wants them; others follow by name."""
_OWN_PAGES = (
    {
        "href": "dbt/index.html",
        "title": "Tables and columns",
        "about": "What each table and column means, how it is made, and the tests it passes.",
    },
    {
        "href": "lineage/index.html",
        "title": "Column lineage",
        "about": "Where each column comes from, and what depends on it.",
    },
)


@dataclass(frozen=True)
class Release:
    """The release that all pages of a site show."""

    number: int
    made_at: str
    tables: tuple[tuple[str, str, int], ...]
    """Schema, table, rows; in a reader's order."""


def read_release(connection: duckdb.DuckDBPyConnection) -> Release:
    """What the catalog says about itself."""
    made = connection.execute("select number, made_at from tarn.catalog").fetchone()
    tables = connection.execute(
        "select schema_name, table_name, row_count from tarn.release"
    ).fetchall()
    if made is None or not tables:
        raise TarnError("the current release holds no table", fix="run dbt build")
    tables.sort(key=lambda table: (_rank(table[0]), *table[:2]))
    return Release(made[0], f"{show(made[1])} UTC", tuple(tables))


def landing_page(
    exposures: Sequence[Exposure],
    manifest: Mapping[str, Any],
    release: Release,
    more: Sequence[Mapping[str, str]] = (),
) -> str:
    """The page itself. Links lead to the site's other pages, `more` among them."""
    outputs = [_output(e) for e in exposures if not isinstance(e.run, Dashboard | Docs)]
    return pages.render(
        "index.html.j2",
        project=project_title(manifest),
        release=release,
        as_of=None,
        pages=[*_dashboards(exposures), *_OWN_PAGES, *more],
        outputs=sorted(outputs, key=lambda output: (output["kind"], output["title"])),
        schemas=_schemas(release, _nodes_by_table(manifest)),
        example=".".join(release.tables[0][:2]),
        tables=show(len(release.tables)),
        rows=show(sum(table[2] for table in release.tables)),
    )


def project_title(manifest: Mapping[str, Any]) -> str:
    """The dbt project's name as a title."""
    return str(manifest["metadata"]["project_name"]).replace("_", " ").capitalize()


def documented(unique_id: str) -> dict[str, str]:
    """The name of a node of dbt's graph and its place in dbt's page."""
    kind, _, name = unique_id.split(".", 2)
    return {"name": name, "href": f"dbt/index.html#!/{kind}/{unique_id}"}


def _rank(schema: str) -> int:
    return _FIRST.index(schema) if schema in _FIRST else len(_FIRST)


def _dashboards(exposures: Sequence[Exposure]) -> Iterator[dict[str, str]]:
    for exposure in exposures:
        if isinstance(exposure.run, Dashboard):
            yield {
                "href": f"dashboards/{exposure.run.page}.html",
                "title": exposure.title,
                "about": _opening(exposure.description) or exposure.run.subtitle or "",
            }


def _output(exposure: Exposure) -> dict[str, str]:
    return {
        "href": documented(exposure.unique_id)["href"],
        "title": exposure.title,
        "kind": exposure.run.kind.replace("_", " ") if exposure.run else exposure.type,
        "about": _opening(exposure.description),
        "owner": exposure.owner,
    }


def _schemas(release: Release, nodes: Mapping[str, Any]) -> list[dict[str, Any]]:
    schemas: dict[str, list[dict[str, str]]] = {}
    for schema, name, rows in release.tables:
        node = nodes.get(f"{schema}.{name}", {})
        schemas.setdefault(schema, []).append(
            {
                "name": name,
                "about": _opening(node.get("description", "")),
                "rows": show(rows),
                "href": documented(node["unique_id"])["href"] if node else "",
            }
        )
    return [{"name": name, "tables": tables} for name, tables in schemas.items()]


def _nodes_by_table(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """dbt's models, seeds, snapshots and sources by `schema.table`."""
    nodes = (*manifest["nodes"].values(), *manifest["sources"].values())
    kinds = ("model", "seed", "snapshot", "source")
    named = ((node, node.get("alias") or node.get("identifier")) for node in nodes)
    return {f"{n['schema']}.{name}": n for n, name in named if n["resource_type"] in kinds}


def _opening(description: str) -> str:
    """The first paragraph of a description, on one line and without Markdown's code marks."""
    return " ".join(description.strip().split("\n\n")[0].replace("`", "").split())
