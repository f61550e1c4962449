"""SQL of metrics, compiled by MetricFlow from the semantic manifest that dbt writes.

MetricFlow's own command line needs seconds a query, most of it for starting dbt. Only its
planner is used here, without a warehouse: what it compiles runs on the released catalog.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from tarn.errors import TarnError
from tarn.serving.tiles import Tile


@dataclass(frozen=True)
class Query:
    """A metric, cut by dimensions and restricted to values of dimensions."""

    metric: str
    group_by: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    """Conditions in MetricFlow's filter language, all of which must hold."""

    @classmethod
    def of(cls, tile: Tile) -> "Query":
        """The query of a tile that names a metric."""
        assert tile.metric is not None
        conditions = (condition(name, wanted) for name, wanted in tile.where.items())
        return cls(tile.metric, tile.group_by, tuple(conditions))


class MetricCompiler:
    """Turns metric queries into SQL for DuckDB over `schema.table` names."""

    def __init__(self, semantic_manifest: Path) -> None:
        self._path = semantic_manifest

    @cached_property
    def _planner(self) -> tuple[Any, list[str]]:
        """MetricFlow's engine and the names of the metrics."""
        # Imported here: MetricFlow takes a second, which pages without metrics need not wait for.
        from metricflow.engine.metricflow_engine import MetricFlowEngine
        from metricflow_semantics.model.dbt_manifest_parser import (
            parse_manifest_from_dbt_generated_manifest,
        )
        from metricflow_semantics.model.semantic_manifest_lookup import SemanticManifestLookup

        content = json.loads(self._path.read_text(encoding="utf-8"))
        names = [metric["name"] for metric in content["metrics"]]
        text = json.dumps(_without_database(content))
        lookup = SemanticManifestLookup(parse_manifest_from_dbt_generated_manifest(text))
        return MetricFlowEngine(lookup, _renderer_only()), names

    def sql_of(self, tile: Tile) -> str:
        """SQL of a tile that names a metric."""
        return self.sql(Query.of(tile))

    def sql(self, query: Query) -> str:
        """SQL with the grouping columns first, in their order, and the metric last."""
        from metricflow.engine.metricflow_engine import MetricFlowQueryRequest
        from metricflow_semantics.errors.error_classes import InvalidQueryException

        engine, names = self._planner
        if query.metric not in names:
            close = get_close_matches(query.metric, names, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"
            raise TarnError(f"no metric {query.metric!r}", fix=fix)
        request = MetricFlowQueryRequest.create(
            metric_names=[query.metric],
            group_by_names=list(query.group_by) or None,
            where_constraints=list(query.where) or None,
            order_by_names=list(query.group_by) or None,
        )
        try:
            return str(engine.explain(request).sql_statement.sql)
        except InvalidQueryException as error:
            raise _explain(query, str(error)) from None


def _explain(query: Query, said: str) -> TarnError:
    """MetricFlow's page of an error in two lines."""
    culprit = re.search(r"Query Input:\s*(.+?)\n\s*\n", said, re.DOTALL)
    known = re.search(r"Suggestions:\s*\[(.*?)\]", said, re.DOTALL)
    return TarnError(
        f"metric {query.metric!r} cannot be cut by {culprit[1].strip() if culprit else said}",
        fix=f"it can by {' '.join(known[1].split()).rstrip(',')}" if known else None,
    )


def condition(dimension: str, wanted: Any) -> str:
    """MetricFlow's filter for a dimension being a value, or one of a tuple of values."""
    values = wanted if isinstance(wanted, tuple) else (wanted,)
    listed = ", ".join(_literal(value) for value in values)
    return f"{{{{ Dimension('{dimension}') }}}} in ({listed})"


def _literal(value: str | int | bool) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _without_database(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest naming its tables `schema.table`: dbt's database is not the catalog's."""
    nodes = [model["node_relation"] for model in content["semantic_models"]]
    spines = content["project_configuration"].get("time_spines") or []
    for node in [*nodes, *(spine["node_relation"] for spine in spines)]:
        node["relation_name"] = f'"{node["schema_name"]}"."{node["alias"]}"'
        node["database"] = None
    return content


def _renderer_only() -> Any:
    """The part of MetricFlow's SqlClient that planning asks for: the dialect."""
    from metricflow.protocols.sql_client import SqlEngine
    from metricflow.sql.render.duckdb_renderer import DuckDbSqlPlanRenderer

    class Renderer:
        sql_engine_type = SqlEngine.DUCKDB
        sql_plan_renderer = DuckDbSqlPlanRenderer()

    return Renderer()
