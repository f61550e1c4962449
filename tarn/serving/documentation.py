"""dbt's own documentation and column lineage as pages that open from disk and call nobody."""

import subprocess
from pathlib import Path

from tarn.errors import TarnError
from tarn.settings import Settings, program

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; worker-src blob: data:;"
    " style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
_MENDED = {
    # Fetched as they stand, before Angular or the build that should have filled them in.
    "${require('./assets/favicons/favicon.ico')}": "data:,",
    'use xlink:href="{{': 'use ng-attr-xlink:href="{{',
}
"""Texts in dbt's page that a browser takes for addresses."""


def generate_dbt_docs(project: Settings) -> Path:
    """Run `dbt docs generate`; gives the folder with manifest, catalog and static page.

    Takes seconds: a process of its own keeps dbt's global state out of this one. The page shows
    a test's declaration, so a third of the time is saved by not compiling tests.
    """
    command = [program("dbt"), "docs", "generate", "--static"]
    command += ["--exclude", "resource_type:test", "resource_type:unit_test"]
    environment = {**project.variables, "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        command, cwd=project.project_dir, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise TarnError(f"dbt docs generate failed:\n{said}", fix="run it by itself: dbt parse")
    return project.project_dir / "target"


def write_dbt_page(target: Path, folder: Path) -> None:
    """dbt's documentation as one page, `folder/index.html`."""
    page = (target / "static_index.html").read_text(encoding="utf-8")
    for text, instead in _MENDED.items():
        page = page.replace(text, instead)
    _write_sealed(page, folder)


def write_lineage(target: Path, folder: Path) -> None:
    """Column lineage of all models as one page, `folder/index.html`.

    Colibri's command line asks a package index for its newest version; its library does not.
    """
    # Here, as both take a second to import.
    from dbt_colibri.report.generator import (  # type: ignore[import-untyped]
        DbtColibriReportGenerator,
    )

    from tarn.serving.lineage import Lineage, one_warning

    with one_warning("colibri", "column lineage is incomplete"):
        report = DbtColibriReportGenerator(Lineage(target).extractor, disable_telemetry=True)
        report.generate_report(output_dir=str(folder))
    _write_sealed((folder / "index.html").read_text(encoding="utf-8"), folder)


def _write_sealed(page: str, folder: Path) -> None:
    """Write a page that may load nothing but itself."""
    start, head, rest = page.partition("<head>")
    if not head:
        raise ValueError("a page without <head> cannot be sealed")
    folder.mkdir(parents=True, exist_ok=True)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    (folder / "index.html").write_text(f"{start}{head}{policy}{rest}", encoding="utf-8")
