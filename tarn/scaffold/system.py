"""A new source system: its declaration from what the live system says, and dbt's files for it.

What is secret in a connection is never written: a variable stands in its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml
from pydantic import TypeAdapter, ValidationError

from tarn.errors import TarnError
from tarn.ingestion.declarations import FOLDER, KINDS, Declared
from tarn.ingestion.declarations.base import Name
from tarn.ingestion.engine import quiet_dlt, source_class
from tarn.ingestion.masking import is_secret_key, message, secrets_in
from tarn.ingestion.peek import peek
from tarn.ingestion.sources import Offered
from tarn.ingestion.types import shown
from tarn.scaffold.files import render, said
from tarn.scaffold.models import mart_files, staging_files
from tarn.settings import SECRETS_FILE, Settings
from tarn.strict_yaml import YamlFile, nearest, parse

GIVEN = "--connection"
_ADDRESS = {"rest_api": "base_url", "kinesis": "region"}
"""Key of a connection that says more than the address that is given."""
_KINDS = {"sql_database": "Database", "rest_api": "API", "delta_sharing": "Delta share"}


@dataclass(frozen=True)
class Wanted:
    """What the user said of the new system."""

    kind: str
    system: str
    connection: str | None = None
    tables: Sequence[str] = ()
    """Patterns of the tables to take; none means all."""
    marts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Patterns of the tables to make marts of, by `dim` and `fct`."""


@dataclass(frozen=True)
class NewSystem:
    """What is to be written, and what the user has to know."""

    files: Mapping[str, str]
    """Text by path in the project."""
    tables: int
    """0: the declaration is a template to be filled in."""
    variables: Mapping[str, str]
    """Variables that stand for what is secret, and their values."""
    notes: tuple[str, ...] = ()


def new_system(wanted: Wanted, home: Settings) -> NewSystem:
    """The files of a new system. Writes nothing; raises TarnError for what cannot be."""
    _check_names(wanted)
    if wanted.connection is None:
        return NewSystem({_file(wanted): _template(wanted)}, 0, {})
    written, variables = _without_secret(wanted)
    home = replace(home, variables={**home.variables, **variables})
    offered = _offered(wanted, written, home)
    text = _declaration(wanted, written, offered)
    tables, notes = _seen(wanted, text, offered, home)
    description = _description(wanted)
    files = {_file(wanted): text}
    files |= staging_files(home.project_dir, wanted.system, description, tables)
    for kind, patterns in wanted.marts.items():
        chosen = _matching(tables, patterns, f"--{kind}")
        files |= dict(mart_files(home.project_dir, wanted.system, chosen, kind))
    _check_models(home.project_dir, files)
    return NewSystem(files, len(offered), variables, tuple(notes))


def keep_secrets(variables: Mapping[str, str], home: Settings) -> None:
    """Add the variables to the file of secrets, which nobody else may read."""
    path = home.project_dir / SECRETS_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = [line for line in text.splitlines() if line.partition("=")[0] not in variables]
    path.touch(mode=0o600)
    lines = [*kept, *(f"{name}={value}" for name, value in variables.items())]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _check_names(wanted: Wanted) -> None:
    if wanted.kind not in KINDS:
        raise TarnError(f"unknown kind {wanted.kind!r}{nearest(wanted.kind, list(KINDS))}")
    try:
        TypeAdapter[str](Name).validate_python(wanted.system)
    except ValidationError as error:
        fix = "small letters, digits and _, a letter first"
        raise TarnError(f"{wanted.system!r} cannot be a system's name", fix=fix) from error


def _file(wanted: Wanted) -> str:
    return f"{FOLDER}/{wanted.system}.yml"


def _description(wanted: Wanted) -> str:
    what = _KINDS.get(wanted.kind, wanted.kind.replace("_", " ").capitalize())
    return f"{what} {wanted.system}."


def _template(wanted: Wanted) -> str:
    try:
        return render(f"kinds/{wanted.kind}.yml", system=wanted.system)
    except LookupError as error:
        raise TarnError(f"give a {GIVEN}: kind {wanted.kind} has no template") from error


def _without_secret(wanted: Wanted) -> tuple[str, dict[str, str]]:
    """The connection as it may be written, and the variable that holds what may not."""
    connection = str(wanted.connection)
    if not _is_secret(connection):
        return connection, {}
    what = "DATABASE_URL" if wanted.kind == "sql_database" else "URL"
    variable = f"{wanted.system.upper()}_{what}"
    return f"${{{variable}}}", {variable: connection}


def _is_secret(connection: str) -> bool:
    if any(secrets_in(connection)):
        return True
    try:
        query = sa.make_url(connection).query
    except (sa.exc.ArgumentError, ValueError):
        return False
    return any(map(is_secret_key, query))


def _offered(wanted: Wanted, connection: str, home: Settings) -> list[Offered]:
    """The tables that the live system has and the user wants."""
    quiet_dlt()
    secrets = set(secrets_in(str(wanted.connection)))
    try:
        source = source_class(wanted.kind)(_draft(wanted, connection, home), home)
        secrets |= source.secrets
        offered = source.offered()
    except Exception as error:
        told = message(error, secrets)
        if isinstance(error, TarnError):
            told = message(TarnError(error.what, GIVEN, error.fix), secrets)
        raise TarnError(told) from error
    if not offered:
        raise TarnError("the system has no tables", GIVEN, "check the address and what you may see")
    return _matching(offered, wanted.tables, "--tables") if wanted.tables else offered


def _draft(wanted: Wanted, connection: str, home: Settings) -> Declared:
    """A declaration that has no tables yet."""
    kind = KINDS[wanted.kind]
    resolved: Any = home.expand(connection, GIVEN)
    if wanted.kind in _ADDRESS:
        resolved = {_ADDRESS[wanted.kind]: resolved}
    annotation: Any = kind.model_fields["connection"].annotation
    system = kind.model_construct(
        system=wanted.system,
        description="",
        kind=wanted.kind,
        connection=TypeAdapter(annotation).validate_python(resolved),
        tables={},
    )
    return Declared(system, YamlFile(GIVEN, {}, {}))


def _matching(offered: Sequence[Offered], patterns: Sequence[str], option: str) -> list[Offered]:
    """Those that a pattern names, by their name here or in the system itself."""
    names = [table.name for table in offered]
    for pattern in patterns:
        if not any(_fits(table, pattern) for table in offered):
            raise TarnError(f"{option}: no table is called {pattern}{nearest(pattern, names)}")
    return [t for t in offered if any(_fits(t, pattern) for pattern in patterns)]


def _fits(table: Offered, pattern: str) -> bool:
    names = (table.name, str(table.spec.get("table", table.name)))
    return any(fnmatchcase(name, pattern) for name in names)


def _declaration(wanted: Wanted, connection: str, offered: Sequence[Offered]) -> str:
    tables = [_told(table) for table in offered]
    key = _ADDRESS.get(wanted.kind)
    written: Any = {key: connection} if key else connection
    return render(
        "system.yml",
        system=wanted.system,
        kind=wanted.kind,
        description=_description(wanted),
        connection=written,
        tables=tables,
    )


def _told(table: Offered) -> Offered:
    """With what the system says of it, first."""
    told = said(table.description)
    spec = {"description": told, **table.spec} if told else dict(table.spec)
    if "description" in table.spec:
        spec["description"] = said(str(table.spec["description"]))
    return replace(table, spec=spec)


def _seen(
    wanted: Wanted, text: str, offered: Sequence[Offered], home: Settings
) -> tuple[list[Offered], list[str]]:
    """The tables with their columns, for which those are opened whose system does not tell; and
    why one could not be."""
    known = {table.name: [table] for table in offered if table.columns}
    notes: list[str] = []
    if len(known) < len(offered):
        with peek(_declared(wanted, text), home) as opened:
            for table in (table for table in offered if table.name not in known):
                try:
                    seen = opened.table(table.name, 1)
                except Exception as error:
                    why = message(error, opened.source.secrets)
                    notes.append(f"No models for {table.name}: {why}")
                    continue
                for each in seen:
                    columns = {field.name: shown(field.type) for field in each.rows.schema}
                    spec = table.spec if each.table == table.name else {"primary_key": ["_dlt_id"]}
                    its = replace(table, name=each.table, spec=spec, columns=columns)
                    known.setdefault(table.name, []).append(its)
    return [each for table in offered for each in known.get(table.name, [])], notes


def _declared(wanted: Wanted, text: str) -> Declared:
    file = YamlFile(_file(wanted), yaml.safe_load(text), {})
    return Declared(parse(file, KINDS[wanted.kind]), file)


def _check_models(project: Path, files: Mapping[str, str]) -> None:
    """dbt wants each model's name once in a project."""
    there = {path.name: path for path in (project / "models").rglob("*.sql")}
    for name in files:
        path = there.get(name.rpartition("/")[2])
        if path is not None and path != project / name:
            model = path.stem
            raise TarnError(
                f"a model is called {model} already",
                str(path.relative_to(project)),
                "write that mart yourself, under another name",
            )
