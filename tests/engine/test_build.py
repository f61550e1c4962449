"""A build writes what changed and no more, and can be made again as it was."""

import pytest

from tarn.storage import releases
from tarn.storage.contents import changes
from tarn.storage.loads import LOADS
from tarn.storage.tables import describe
from tarn.storage.writer import write
from tests.engine.library import Library


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library after two days, each loaded and built."""
    library = Library.founded(tmp_path_factory.mktemp("library") / "project")
    for day in (1, 2):
        library.day(day)
        library.tarn("ingest")
        library.tarn("build")
    return library


def test_a_commit_tells_what_made_it_from_what_and_for_which_release(built: Library) -> None:
    table = describe(built.lake, "marts.rpt_loans_by_town")
    newest = table.history[0]
    assert newest.made_by["model"] == "model.library.rpt_loans_by_town"
    assert newest.made_by["after_release"] == "1"
    assert newest.release == 2
    assert [name.partition("@")[0] for name in newest.reads] == [
        "marts.dim_book",
        "marts.fct_loans",
        "seeds.branches",
    ]
    loaded = describe(built.lake, "raw_desk.loans").history[0].made_by
    assert loaded["system"] == "desk"
    assert loaded["load_id"]
    shown = built.tarn("table", "show", "marts.rpt_loans_by_town")
    assert "model.library.rpt_loans_by_town" in shown
    assert "marts.fct_loans@1" in shown


def test_a_table_that_no_model_reads_is_released_as_it_is(built: Library) -> None:
    now = releases.current(built.lake)
    assert now is not None
    newest = describe(built.lake, "raw_desk.opening_hours").version
    assert now.tables["raw_desk.opening_hours"].version == newest > 0


def test_a_build_of_nothing_new_writes_nothing(built: Library) -> None:
    before = {name: describe(built.lake, name).version for name in built.lake.names()}
    said = built.tarn("build")
    assert "Nothing changed: release 2 stays." in said
    assert said.count("unchanged") == 4  # three models and the seed; the rest adds nothing
    assert before == {name: describe(built.lake, name).version for name in built.lake.names()}


def test_what_only_history_tells_makes_no_release(built: Library) -> None:
    before = releases.current(built.lake)
    loads = built.lake.table(LOADS)
    assert before is not None
    assert loads is not None
    write(built.lake, LOADS, loads.to_pyarrow_table().slice(0, 1), mode="append")
    assert f"Nothing changed: release {before.number} stays." in built.tarn("build")
    assert releases.current(built.lake) == before


def test_only_what_hangs_on_a_change_is_written(built: Library) -> None:
    with built.upstream() as desk:
        desk.execute("insert into visits (visited_on) values ('2024-01-03')")
    built.tarn("ingest")
    said = built.tarn("build")
    number = releases.numbers(built.lake)[-1]
    new = releases.diff(releases.read(built.lake, number - 1), releases.read(built.lake, number))
    assert {change.name for change in new} >= {"raw_desk.visits", "marts.fct_daily_visits"}
    assert "marts.rpt_loans_by_town" not in {change.name for change in new}
    assert "1 of" in said


def test_the_clock_makes_a_model_new_each_time(built: Library) -> None:
    model = built.folder / "models" / "marts" / "fct_clock.sql"
    model.write_text("select current_timestamp as at, current_date as day")
    try:
        built.tarn("build", "--select", "fct_clock")
        assert "unchanged" not in built.tarn("build", "--select", "fct_clock")
    finally:
        model.unlink()


def test_a_release_can_be_built_again_as_it_was(built: Library) -> None:
    first = releases.read(built.lake, 1)
    said = built.tarn("build", "--from-release", "1")
    assert "Every table has the rows it has in release 1" in said
    again = releases.current(built.lake)
    assert again is not None
    assert again.made_by["rebuilt_from_release"] == "1"
    assert again.tables["raw_desk.loans"] == first.tables["raw_desk.loans"]
    for name, pin in again.tables.items():
        assert not changes(built.lake, name, first.tables[name], pin), name
    rebuilt = {change.name for change in releases.diff(first, again)}
    assert rebuilt >= {"marts.fct_loans", "marts.dim_book", "marts.rpt_loans_by_town"}
    # What a changed model makes of the same raw tables is told by name.
    model = built.folder / "models" / "marts" / "fct_daily_visits.sql"
    kept = model.read_text()
    model.write_text(kept.replace("count(*)", "count(*) + 1"))
    assert "Other rows than in release 1: marts.fct_daily_visits." in built.tarn(
        "build", "--from-release", "1"
    )
    model.write_text(kept)


def test_a_release_that_is_gone_is_named(built: Library) -> None:
    done = built.command("tarn", "build", "--from-release", "99")
    assert done.returncode == 1
    assert "no release 99" in done.stderr
    assert "Traceback" not in done.stderr


def test_diff_tells_rows_and_columns(built: Library) -> None:
    lines = built.tarn("release", "diff", "1", "2").splitlines()
    by_table = {line.split()[0]: line.split(maxsplit=4)[1:] for line in lines[1:]}
    with built.upstream() as desk:
        days = dict(desk.execute("select visited_on, count(*) from visits group by 1"))
        returned = desk.execute(
            "select count(*) from loans where lent_on = '2024-01-01' and returned_on = '2024-01-02'"
        ).fetchone()[0]
    assert by_table["raw_desk.visits"][3].strip() == f"+{days['2024-01-02']} -0"
    assert by_table["marts.fct_loans"][3].strip() == f"+{200 + returned} -{returned}"
