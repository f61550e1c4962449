"""Drift that a contract does not let in stops what is made of the table, and nothing else."""

import pytest

from tarn.storage import releases
from tarn.storage.contents import content_hash
from tests.engine.library import Library

OF_LOANS = {"marts.fct_loans", "marts.rpt_loans_by_town"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library, built once; then a column of its loans has another name."""
    library = Library.founded(tmp_path_factory.mktemp("library") / "project")
    library.day(1)
    library.tarn("ingest")
    library.tarn("build")
    library.day(2)
    with library.upstream() as desk:
        desk.execute("alter table loans rename column branch to office")
    return library


def test_what_is_made_of_the_table_keeps_its_release_and_the_rest_is_released(
    library: Library,
) -> None:
    before = releases.current(library.lake)
    failed = library.command("tarn", "ingest")
    assert failed.returncode == 1
    assert "branch" in failed.stderr
    assert "office" in failed.stderr
    said = library.tarn("build", "--full-refresh")
    assert "Kept as before: marts.fct_loans, marts.rpt_loans_by_town" in said
    assert "raw_desk.loans" in said
    now = releases.current(library.lake)
    assert before is not None
    assert now is not None
    assert now.number == before.number + 1
    rewritten = {name for name, pin in now.tables.items() if pin != before.tables.get(name)}
    assert {"raw_desk.visits", "marts.fct_daily_visits", "marts.dim_book"} <= rewritten
    assert not rewritten & OF_LOANS


def test_drift_names_the_models_and_exposures_that_use_the_column(library: Library) -> None:
    said = library.tarn("drift")
    gone = next(line for line in said.splitlines() if "renamed branch → office" in line)
    assert gone.split()[2:4] == ["desk.loans", "branch"]
    assert "blocks" in gone
    assert "stg_desk__loans" in said
    assert "rpt_loans_by_town" in said
    assert "fct_daily_visits" not in said
    assert "desk.loans is not loaded" in said


def test_a_load_that_succeeds_ends_it(library: Library) -> None:
    with library.upstream() as desk:
        desk.execute("alter table loans rename column office to branch")
    library.tarn("ingest")
    said = library.tarn("build")
    assert "Kept as before" not in said
    now = releases.current(library.lake)
    assert now is not None
    then = releases.read(library.lake, 1)
    for name in OF_LOANS:
        assert content_hash(library.lake, name, now.tables[name]) != content_hash(
            library.lake, name, then.tables[name]
        )
    assert "mended" in library.tarn("drift")
    assert library.tarn("drift", "--blocking").strip() == "Nothing blocks."
