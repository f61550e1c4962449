"""`site/`: the landing page, the dashboards, dbt's documentation and column lineage, in one folder.

The site is written aside and put in the old one's place when all of it succeeded. Each page
opens from disk and asks nothing of any server. Dashboards and the landing page are the same
bytes again for the same release and declarations.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from tarn.serving import loads, pages
from tarn.serving.dashboards import as_of, draw
from tarn.serving.declarations import Dashboard, Exposure, read_exposures
from tarn.serving.documentation import generate_dbt_docs, write_dbt_page, write_lineage
from tarn.serving.landing import documented, landing_page, project_title, read_release
from tarn.serving.metrics import MetricCompiler
from tarn.settings import settings
from tarn.storage import catalog
from tarn.storage.clock import now
from tarn.storage.loads import TableStatus

FOLDER = "site"


@dataclass(frozen=True)
class Site:
    """What was written."""

    folder: Path
    release: int
    dashboards: tuple[Path, ...]

    @property
    def index(self) -> Path:
        return self.folder / "index.html"


def build_site(tables: Sequence[TableStatus] = ()) -> Site:
    """Document the project and draw its dashboards from the current release, into `site/`.

    `tables` is where the loads of source tables stand.
    """
    here = settings()
    folder, scratch = here.project_dir / FOLDER, here.project_dir / "target"
    with (
        catalog.connect() as connection,
        _replacing(folder, scratch) as draft,
        ThreadPoolExecutor(1) as beside,
    ):
        # Starting a JavaScript engine takes two seconds, which pass while dbt works.
        beside.submit(pages.library)
        target = generate_dbt_docs(here)
        names = write_pages(draft, here.project_dir, target, connection, tables)
        write_dbt_page(target, draft / "dbt")
        write_lineage(target, draft / "lineage")
        release = read_release(connection).number
    return Site(folder, release, tuple(folder / _dashboard_file(name) for name in names))


def write_pages(
    folder: Path,
    project: Path,
    target: Path,
    connection: duckdb.DuckDBPyConnection,
    tables: Sequence[TableStatus] = (),
) -> list[str]:
    """Write the landing page, that of loads and every dashboard declared; gives the dashboards'
    page names.

    `target` holds dbt's manifest and semantic manifest.
    """
    manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    exposures = read_exposures(manifest, project)
    metrics = MetricCompiler(target / "semantic_manifest.json")
    release = read_release(connection)
    common = {"project": project_title(manifest), "release": release}
    names = []
    for exposure in exposures:
        if isinstance(exposure.run, Dashboard):
            page = _dashboard(exposure, exposure.run, connection, metrics, common)
            _write(folder / _dashboard_file(exposure.run.page), page)
            names.append(exposure.run.page)
    if tables:
        _write(folder / loads.PAGE, loads.loads_page(tables, now(), **common))
    cards = [loads.CARD] if tables else []
    _write(folder / "index.html", landing_page(exposures, manifest, release, cards))
    return names


def _dashboard(
    exposure: Exposure,
    dashboard: Dashboard,
    connection: duckdb.DuckDBPyConnection,
    metrics: MetricCompiler,
    common: Mapping[str, Any],
) -> str:
    tiles = draw(exposure, dashboard, connection, metrics.sql_of)
    charts = any(drawn.tile.kind == "chart" for drawn in tiles)
    return pages.render(
        "dashboard.html.j2",
        **common,
        exposure=exposure,
        dashboard=dashboard,
        tiles=tiles,
        as_of=as_of(exposure, dashboard, connection),
        sources=[documented(node) for node in exposure.depends_on],
        themes=pages.themes(),
        library=pages.library() if charts else None,
    )


def _dashboard_file(page: str) -> str:
    return f"dashboards/{page}.html"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@contextmanager
def _replacing(folder: Path, scratch: Path) -> Iterator[Path]:
    """A new folder in `scratch` that takes `folder`'s place when the block succeeds."""
    scratch.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as made:
        draft, old = Path(made, "new"), Path(made, "old")
        draft.mkdir()
        yield draft
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
