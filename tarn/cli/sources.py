"""The verbs by which a new system is connected: looked at, declared, checked."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from tarn.cli.console import CONSOLE, print_table, say
from tarn.errors import TarnError
from tarn.settings import find_project, settings

if TYPE_CHECKING:
    from tarn.ingestion.check import SystemCheck, TableCheck
    from tarn.ingestion.peek import Seen
    from tarn.scaffold.system import NewSystem

_FEW = 6
"""So many files of a folder are named one by one."""
_LONGEST_VALUE = 40
_NUMBERS = ("bigint", "integer", "double")
_NARROW = 12
"""Below so many characters a column a row is shown on several lines."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def init(folder: Path) -> None:
    """Make an empty project in a folder; a clone of one is made ready to run."""
    from tarn.scaffold.project import make_project

    try:
        made = make_project(folder)
    except OSError as error:
        raise TarnError(f"cannot write: {error.strerror}", str(folder)) from error
    if not made:
        return say(f"{folder} is a project already; its dbt now finds the engine.")
    enter = "" if folder.resolve() == Path.cwd() else f"  cd {folder}\n"
    say(
        f"Made a project of {len(made)} files in {folder}.\n\nNext:\n{enter}"
        "  tarn source new sql_database NAME --connection ADDRESS\n"
        "  tarn ingest\n"
        "  tarn build"
    )


@click.group()
def source() -> None:
    """Source systems: connect a new one, look at its rows, check that it can be loaded."""


@source.command()
@click.argument("kind")
@click.argument("system")
@click.option(
    "--connection", metavar="ADDRESS", help="Of the live system; else a template is written."
)
@click.option("--tables", multiple=True, metavar="PATTERN", help="Only tables called so.")
@click.option("--dim", multiple=True, metavar="PATTERN", help="Make marts dim_… of these tables.")
@click.option("--fct", multiple=True, metavar="PATTERN", help="Make marts fct_… of these tables.")
@click.option("--save-secret", is_flag=True, help="Put what is secret into secrets.env.")
@click.option("--force", is_flag=True, help="Write over files that are there already.")
def new(
    kind: str,
    system: str,
    connection: str | None,
    tables: Sequence[str],
    dim: Sequence[str],
    fct: Sequence[str],
    save_secret: bool,
    force: bool,
) -> None:
    """Declare a system, and write the models that read it.

    KIND is what it is, as sql_database; SYSTEM is what it will be called. PATTERN may have * and ?.
    """
    from tarn.scaffold.files import write
    from tarn.scaffold.project import refresh_schema
    from tarn.scaffold.system import Wanted, keep_secrets, new_system

    home = settings()
    marts = {"dim": dim, "fct": fct}
    if connection is None and (tables or dim or fct or save_secret):
        raise TarnError("without --connection only a template is written, no tables or marts")
    with CONSOLE.status(f"asking {system}"):
        made = new_system(Wanted(kind, system, connection, tables, marts), home)
    write(home.project_dir, made.files, force)
    refresh_schema(home.project_dir)
    if save_secret:
        keep_secrets(made.variables, home)
    _tell_new(system, made, save_secret)


@source.command()
@click.argument("systems", nargs=-1)
def check(systems: Sequence[str]) -> None:
    """Connect, and say what would work and what not. Loads nothing."""
    from tarn.ingestion.check import check
    from tarn.ingestion.declarations import FOLDER, declared

    home = settings()
    failed = False
    for wanted in declared(home.project_dir / FOLDER, systems):
        with CONSOLE.status(f"asking {wanted.name}"):
            found = check(wanted, home)
        _tell(found)
        failed |= found.failed
    sys.exit(failed)


@source.command()
@click.argument("system")
@click.argument("table", required=False)
@click.option(
    "--limit", type=click.IntRange(1), default=10, help="Rows of each table; default: 10."
)
def preview(system: str, table: str | None, limit: int) -> None:
    """Show rows as they would land. Loads nothing."""
    from tarn.ingestion.declarations import FOLDER, declared
    from tarn.ingestion.engine import told
    from tarn.ingestion.peek import peek
    from tarn.strict_yaml import nearest

    home = settings()
    (wanted,) = declared(home.project_dir / FOLDER, [system])
    failed = False
    with peek(wanted, home) as opened:
        names = list(opened.source.tables)
        if table is not None and table not in names:
            raise TarnError(f"{system} has no table {table!r}{nearest(table, names)}")
        for name in [table] if table else names:
            try:
                for seen in opened.table(name, limit):
                    _show(system, seen)
            except Exception as failure:
                failed = True
                secrets = opened.source.secrets
                error = told(failure, opened.declared, ("tables", name), secrets)
                click.echo(click.style("failed: ", fg="red", bold=True) + error, err=True)
    sys.exit(failed)


def _tell_new(system: str, made: "NewSystem", is_saved: bool) -> None:
    """What was written, and what to do next."""
    folders = Counter(name.rpartition("/")[0] for name in made.files)
    files = (n for n, text in made.files.items() if folders[n.rpartition("/")[0]] <= _FEW)
    say("Written:")
    for name in files:
        say(f"  {name}")
    for folder, count in folders.items():
        if count > _FEW:
            say(f"  {folder}/  ({count} files)")
    for note in made.notes:
        say(note)
    for variable in made.variables:
        if is_saved:
            say(f"\n{variable} is kept in secrets.env, which git must ignore.")
        else:
            say(f"\nThe address holds a secret, so it was not written. Put it into {variable}:")
            say(f"  export {variable}=… or a line {variable}=… in secrets.env")
    steps = ["tarn ingest", "tarn build"] if made.tables else []
    say("\nNext:")
    say(
        f"  edit ingestion/{system}.yml: what it is, who owns it"
        + ("" if steps else ", its tables")
    )
    for step in [f"tarn source check {system}", *steps]:
        say(f"  {step}")


def _tell(found: "SystemCheck") -> None:
    CONSOLE.print(f"[bold]{found.name}[/] ({found.kind})", highlight=False)
    for line in found.can:
        say(f"  {line}")
    for table in found.tables:
        _tell_table(table)
    if found.error:
        CONSOLE.print(f"  [red]✗[/] {escape(found.error)}", highlight=False, soft_wrap=True)


def _tell_table(table: "TableCheck") -> None:
    mark = "[red]✗[/]" if table.error else "[yellow]![/]" if table.remarks else "[green]✓[/]"
    rows = f" ({table.rows})" if table.rows else ""
    CONSOLE.print(
        f"  {mark} {table.name}{rows}: {escape(table.how)}", highlight=False, soft_wrap=True
    )
    for remark in table.remarks:
        say(f"      {remark}")
    if table.error:
        say("      " + table.error.replace("\n", "\n      "))


def _show(system: str, seen: "Seen") -> None:
    """A table's rows, and those that would not land."""
    kept = f"{seen.rows.num_rows:,} {_rows(seen.rows.num_rows)}" + (", all" if seen.is_all else "")
    CONSOLE.print(f"[bold]raw_{system}.{seen.table}[/]: {kept}", highlight=False)
    types = _types(seen.rows.schema)
    if seen.rows.num_columns * _NARROW <= (CONSOLE.width if CONSOLE.is_terminal else 200):
        _show_grid(seen.rows, types)
    else:
        _show_lines(seen.rows, types)
    for note in seen.notes:
        say(f"  {note}")
    if seen.rejected:
        count = len(seen.rejected)
        CONSOLE.print(f"[yellow]{count:,} {_rows(count)} would go to quarantine:[/]")
    for one in seen.rejected:
        at = f" ({one.place})" if one.place else ""
        say(f"  {one.reason}{at}\n    {_row(one.row)}")
    say("")


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _types(schema: pa.Schema) -> Mapping[str, str]:
    from tarn.ingestion.types import shown

    return {field.name: shown(field.type) for field in schema}


def _show_grid(rows: pa.Table, types: Mapping[str, str]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, kind in types.items():
        right = kind in _NUMBERS or kind.startswith("decimal")
        head = f"{escape(name)}\n[dim]{escape(kind)}[/]"
        table.add_column(head, no_wrap=True, justify="right" if right else "left")
    for row in rows.to_pylist():
        table.add_row(*(_cell(value) for value in row.values()))
    print_table(table)


def _show_lines(rows: pa.Table, types: Mapping[str, str]) -> None:
    """As many lines a row as there are columns."""
    width = max(map(len, types), default=0)
    widest = max(map(len, types.values()), default=0)
    for number, row in enumerate(rows.to_pylist(), 1):
        CONSOLE.print(f"[dim]row {number}[/]", highlight=False)
        for name, kind in types.items():
            line = f"  {escape(name.ljust(width))}  [dim]{escape(kind.ljust(widest))}[/]"
            CONSOLE.print(f"{line}  {_cell(row[name])}", highlight=False, soft_wrap=True)


def _cell(value: Any) -> str:
    return "[dim]null[/]" if value is None else escape(_brief(value))


def _brief(value: Any) -> str:
    """A value on one line; bytes as DuckDB writes them."""
    text = repr(value)[2:-1] if isinstance(value, bytes) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _row(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {_brief(value)}" for name, value in row.items())


def relink() -> None:
    """See to it that dbt finds the engine's macros, if this is a project that installs it."""
    from tarn.scaffold.link import link_engine

    with suppress(TarnError):
        link_engine(find_project(Path.cwd()))
