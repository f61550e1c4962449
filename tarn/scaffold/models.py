"""dbt's files for a new system: its sources, a staging view of each table, and first marts.

A column keeps its name unless SQL has a use for the word; then it is called after its table. Text
is trimmed. What is written passes sqlfluff and means the same on DuckDB and Spark.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from tarn.errors import TarnError
from tarn.ingestion.sources import Offered
from tarn.scaffold.files import render, said

_LINE = 88
_LOADED_AT = "loaded_at"
_OURS = ("_load_id", "_loaded_at", "_source_file")
_MART_TYPES = {"text": "string"}
_PORTABLE = re.compile(r"text|bigint|integer|double|boolean|date|timestamp|decimal\(\d+, ?\d+\)")
_DOCS = {
    "_load_id": "The load that last brought the row.",
    "_loaded_at": "When that load ran, UTC. The same for all rows of a load.",
    "loaded_at": "When the row last came into the lake, UTC.",
}


@dataclass(frozen=True)
class Column:
    """A column on its way from the raw table through staging."""

    raw: str
    name: str
    kind: str
    """As YAML names types."""
    comment: str
    """What the system says of it."""
    description: str

    @property
    def sql(self) -> str:
        """The column in the select list of its staging view."""
        raw = f"{{{{ adapter.quote('{self.raw}') }}}}" if self.raw in _words()[0] else self.raw
        value = f"trim({raw})" if self.kind == "text" else raw
        if value == self.name:
            return value
        line = f"{value} as {self.name}"
        return line if len(line) < _LINE - len("    ,") else f"{value}\n        as {self.name}"

    @property
    def mart_type(self) -> str:
        return _MART_TYPES.get(self.kind, self.kind)


@dataclass(frozen=True)
class Staged:
    """A raw table as its staging view shows it."""

    name: str
    description: str
    key: list[str]
    columns: list[Column]

    @classmethod
    def of(cls, table: Offered, system: str) -> "Staged":
        key = list(table.spec.get("primary_key", ()))
        kept = {name: kind for name, kind in table.columns.items() if name not in _OURS}
        ordered = [*(name for name in key if name in kept), *(n for n in kept if n not in key)]
        names = _names(ordered, table.name)
        columns = [
            Column(raw, name, kept[raw], (comment := said(table.comments.get(raw, ""))),
                   comment or f"`{raw}` of {table.name} in {system}.")
            for raw, name in names.items()
        ]  # fmt: skip
        row = f"One row per {singular(table.name).replace('_', ' ')} of {system}."
        told = said(table.description) or (row if key else f"Rows of {table.name} in {system}.")
        return cls(table.name, told, [names[part] for part in key if part in names], columns)


def staging_files(
    project: Path, system: str, description: str, tables: Sequence[Offered]
) -> dict[str, str]:
    """The system's sources and staging views."""
    folder, docs = f"models/staging/{system}", _docs(project)
    staged = [Staged.of(table, system) for table in tables]
    values = {"system": system, "description": description, "docs": docs}
    made = {f"{folder}/_{system}__sources.yml": render("sources.yml", **values, tables=staged)}
    for table in staged:
        model = f"stg_{system}__{table.name}"
        path = f"{folder}/{model}"
        made[f"{path}.sql"] = render("staging.sql", system=system, table=table)
        made[f"{path}.yml"] = _model_yml(model, table, docs, is_mart=False)
    return made


def mart_files(
    project: Path, system: str, tables: Sequence[Offered], kind: str
) -> Iterator[tuple[str, str]]:
    """A mart of each table with a contract: kind is `dim` or `fct`. Columns of a type that is
    called otherwise on another engine stay in staging."""
    for offered in tables:
        table = Staged.of(offered, system)
        model = f"dim_{singular(table.name)}" if kind == "dim" else f"fct_{table.name}"
        if not table.key:
            raise TarnError(
                f"{table.name} has no primary key, so {model} could not be tested",
                fix=f"leave --{kind} {table.name} out and write that mart yourself",
            )
        portable = [column for column in table.columns if _PORTABLE.fullmatch(column.kind)]
        table = Staged(table.name, table.description, table.key, portable)
        staging = f"stg_{system}__{table.name}"
        cte = f"staged_{table.name}" if table.name in _words()[0] | _words()[1] else table.name
        path = f"models/marts/{system}/{model}"
        yield f"{path}.sql", render("mart.sql", table=table, cte=cte, staging=staging)
        yield f"{path}.yml", _model_yml(model, table, _docs(project), is_mart=True)


def singular(name: str) -> str:
    """One of what a table's name says: orders → order."""
    if name.endswith("ies") and len(name) > 4:
        return f"{name[:-3]}y"
    if name.endswith(("sses", "shes", "ches", "xes")):
        return name[:-2]
    return name if name.endswith(("ss", "us", "is")) else name.removesuffix("s")


def _names(columns: Sequence[str], table: str) -> dict[str, str]:
    """Name in staging by name in the raw table, no two the same."""
    reserved, other = _words()
    taken = {_LOADED_AT, *columns}
    names: dict[str, str] = {}
    for raw in columns:
        name = raw
        if raw in reserved | other or raw == _LOADED_AT:
            name = f"{singular(table)}_{raw.lstrip('_')}"
            while name in taken:
                name += "_2"
        taken.add(name)
        names[raw] = name
    return names


def _model_yml(model: str, table: Staged, docs: Mapping[str, str], is_mart: bool) -> str:
    return render("model.yml", model=model, table=table, docs=docs, is_mart=is_mart)


def _docs(project: Path) -> dict[str, str]:
    """Descriptions of what every load adds: the project's own docs blocks, where it has them."""
    pages = [path.read_text(encoding="utf-8") for path in (project / "models").rglob("*.md")]
    known = {name for page in pages for name in re.findall(r"{%-?\s*docs\s+(\w+)", page)}
    return {k: f"{{{{ doc('{k}') }}}}" if k in known else text for k, text in _DOCS.items()}


@cache
def _words() -> tuple[frozenset[str], frozenset[str]]:
    """Words of SQL: those that must be quoted, and the others."""
    listed = yaml.safe_load(files("tarn.scaffold").joinpath("words.yml").read_text())
    return frozenset(listed["reserved"]), frozenset(listed["other"])
