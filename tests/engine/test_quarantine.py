"""Rows that may not pass: where they stand, when they were seen, and how they come back."""

import json
import signal
import subprocess
import sys
import time
from datetime import datetime
from decimal import Decimal
from typing import Any

import dlt
import psycopg
import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import write_deltalake

from tarn.cli import cli
from tarn.errors import TarnError
from tarn.ingestion.landed import PLACE
from tarn.ingestion.replay import Replayed
from tarn.ingestion.review import discard, groups, replay_all
from tarn.ingestion.review import rows as kept_rows
from tarn.ingestion.sources import Rejected
from tarn.ingestion.sources.files.source import Files
from tarn.settings import settings
from tests.engine.ingesting import Project, api, counts_of, project
from tests.engine.postgres import database, postgres
from tests.engine.upstreams import TOKEN, Api, Request, serving

__all__ = ["api", "postgres", "project"]

SHOP = "sqlite:///shop.db"


def _give(monkeypatch: pytest.MonkeyPatch, items: list[Any], is_objects: bool) -> None:
    """Let every table of files be these items."""
    from dlt.extract import DltSource

    from tarn.ingestion.sources import Extract

    def extract(self: Files, table: str, landed: object) -> Extract:
        def opened() -> Any:
            resource = dlt.resource(list(items), name=table)
            return DltSource(dlt.Schema(table), table, [resource]) if is_objects else resource

        return Extract(opened, is_objects=is_objects)

    monkeypatch.setattr(Files, "extract", extract)


BATCH = {"id": ["1", "x"], PLACE: ["a.csv:2", "a.csv:3"]}
REJECTED = Rejected({"line": "1;2;3;4"}, "4 values for 2 columns", "a.csv:4")


@pytest.mark.parametrize("is_objects", [False, True], ids=["rows", "objects"])
def test_what_cannot_be_parsed_is_counted_and_kept_with_its_place(
    project: Project, monkeypatch: pytest.MonkeyPatch, is_objects: bool
) -> None:
    batch = pa.RecordBatch.from_pydict(BATCH)
    items = [*batch.to_pylist(), REJECTED] if is_objects else [batch, REJECTED]
    _give(monkeypatch, items, is_objects)
    (project.path / "drop").mkdir()
    tables = "  ids: {path: '*', primary_key: [id], write: merge, columns: {id: bigint}}"
    project.declare("drop", "files", "drop", tables)
    assert counts_of(project.load()["ids"]) == (3, 1, 2, 0)
    assert [row["id"] for row in project.rows("raw_drop.ids", "id")] == [1]
    assert PLACE not in project.types("raw_drop.ids")
    kept = project.rows("quarantine_drop.ids", order="_place")
    told = [(row["_system"], row["_place"], row["_reason"]) for row in kept]
    assert told == [
        ("drop", "a.csv:3", "id: 'x' is not bigint"),
        ("drop", "a.csv:4", "4 values for 2 columns"),
    ]
    assert json.loads(kept[1]["_row"]) == {"line": "1;2;3;4"}
    before = project.versions()
    assert counts_of(project.load()["ids"]) == (3, 0, 0, 3)
    assert project.versions() == before


@pytest.mark.parametrize("is_objects", [False, True], ids=["rows", "objects"])
def test_nothing_but_what_cannot_be_parsed(
    project: Project, monkeypatch: pytest.MonkeyPatch, is_objects: bool
) -> None:
    whole = [Rejected({}, "is no CSV", f"{name}.csv") for name in "ab"]
    _give(monkeypatch, whole, is_objects)
    (project.path / "drop").mkdir()
    project.declare("drop", "files", "drop", "  ids: {path: '*', write: append}")
    assert counts_of(project.load()["ids"]) == (2, 0, 2, 0)
    assert counts_of(project.load()["ids"]) == (2, 0, 0, 2)
    assert len(project.rows("quarantine_drop.ids")) == 2


THINGS = "create table things (id bigint primary key, amount decimal(10,2), at timestamp);"


def _declare(project: Project, rules: str, how: str = "primary_key: [id], write: merge") -> None:
    project.declare("shop", "sql_database", SHOP, f"  things: {{{how}, rules: [{rules}]}}")


def _counted(replayed: list[Replayed]) -> list[tuple[str, int, int, int]]:
    """Table, loaded, superseded, stayed."""
    return [(r.table, r.counts.accepted, r.counts.deduplicated, r.stayed) for r in replayed]


def _amounts(project: Project) -> dict[int, Decimal]:
    rows = project.rows("raw_shop.things", "id, amount", "id")
    return {row["id"]: row["amount"] for row in rows}


def test_first_seen_stays_and_last_seen_moves_when_a_row_comes_again(project: Project) -> None:
    project.sql(THINGS + "insert into things values (1, -1, null);")
    _declare(project, "amount >= 0")
    project.load()
    (first,) = project.rows("quarantine_shop.things")
    assert first["_first_seen"] == first["_last_seen"]
    project.sql("insert into things values (2, 2, null);")
    assert counts_of(project.load()["things"]) == (2, 1, 0, 1)
    (again,) = project.rows("quarantine_shop.things")
    assert again["_first_seen"] == first["_first_seen"] < again["_last_seen"]
    before = project.versions()
    project.load()
    assert project.versions() == before
    _declare(project, "amount > -1")
    project.load()
    (told,) = project.rows("quarantine_shop.things")
    assert told["_reason"] == "breaks the rule amount > -1"


def test_a_quarantine_of_an_earlier_tarn_gains_the_new_columns(project: Project) -> None:
    at = pa.array([datetime(2025, 1, 1)], pa.timestamp("us"))
    old = {"_reason": ["x"], "_load_id": ["1"], "_loaded_at": at, "_row": ["{}"], "_id": ["i"]}
    write_deltalake(project.path / "lake/quarantine_shop/things", pa.table(old))
    project.sql(THINGS + "insert into things values (1, -1, null);")
    _declare(project, "amount >= 0")
    assert counts_of(project.load()["things"]) == (1, 0, 1, 0)
    assert sum(group.rows for group in groups(project.lake)) == 2
    assert groups(project.lake)[-1].first_seen == datetime(2025, 1, 1)
    assert discard(project.lake, "shop.things", "x") == 1


@pytest.mark.parametrize(
    "how",
    [
        "primary_key: [id], write: merge",
        "primary_key: [id], write: append",
        "write: append",
        "write: replace",
    ],
    ids=["merge", "append", "append without key", "replace"],
)
def test_replay_loads_what_passes_now_and_once(project: Project, how: str) -> None:
    project.sql(THINGS + "insert into things values (1, 1, null), (2, -2, null), (3, -30, null);")
    _declare(project, "amount >= 0", how)
    assert counts_of(project.load()["things"]) == (3, 1, 2, 0)
    _declare(project, "amount >= -10", how)
    assert _counted(replay_all("shop")) == [("things", 1, 0, 1)]
    assert _amounts(project) == {1: 1, 2: -2}
    assert _counted(replay_all("shop.things")) == [("things", 0, 0, 1)]
    loads = project.rows("tarn.loads", "status, rows_read, rows_accepted", "started_at")
    assert loads[-1] == {"status": "replayed", "rows_read": 1, "rows_accepted": 1}
    # The source still has all three.
    assert counts_of(project.load()["things"])[0] == 3
    assert _amounts(project) == {1: 1, 2: -2}
    assert len(project.rows("quarantine_shop.things")) == 1


def test_an_older_row_does_not_take_the_place_of_a_newer(project: Project) -> None:
    project.sql(
        THINGS + "insert into things values (1, -1, '2017-01-01'), (2, -2, '2017-01-01'),"
        " (3, 3, '2017-01-05');"
    )
    how = "primary_key: [id], write: merge, cursor: at"
    _declare(project, "amount >= 0", how)
    project.load()
    project.sql("update things set amount = 10, at = '2017-01-06' where id = 1;")
    project.load()
    _declare(project, "amount >= -10", how)
    assert _counted(replay_all("shop")) == [("things", 1, 1, 0)]
    assert _amounts(project) == {1: 10, 2: -2, 3: 3}


def test_a_row_that_its_source_has_no_more_is_not_put_into_a_replaced_table(
    project: Project,
) -> None:
    project.sql(THINGS + "insert into things values (1, 1, null), (2, -2, null), (3, -3, null);")
    _declare(project, "amount >= 0", "write: replace")
    project.load()
    project.sql("delete from things where id = 2; insert into things values (4, 4, null);")
    project.load()
    _declare(project, "amount >= -10", "write: replace")
    assert _counted(replay_all("shop")) == [("things", 1, 1, 0)]
    assert _amounts(project) == {1: 1, 3: -3, 4: 4}


def test_rows_without_key_come_back_unless_their_file_came_again(project: Project) -> None:
    table = "  things: {path: '*.csv', write: append, columns: {amount: bigint}, rules: [RULE]}"
    strict, loose = (table.replace("RULE", rule) for rule in ("amount >= 0", "amount >= -10"))
    project.declare("shop", "files", "drop", strict)
    project.file("a.csv", "word,amount\nx,-1\ny,1\n")
    project.file("b.csv", "word,amount\nz,-2\n")
    assert counts_of(project.load()["things"]) == (3, 1, 2, 0)
    project.file("b.csv", "word,amount\nz,2\n")
    project.declare("shop", "files", "drop", loose)
    # The same as a quarantined row, and yet another.
    project.file("c.csv", "word,amount\nx,-1\n")
    assert counts_of(project.load()["things"]) == (2, 2, 0, 0)
    assert _counted(replay_all("shop")) == [("things", 1, 1, 0)]
    rows = project.rows("raw_shop.things", "word, amount", "word")
    assert [(row["word"], row["amount"]) for row in rows] == [
        ("x", -1),
        ("x", -1),
        ("y", 1),
        ("z", 2),
    ]


EXACT = """
    create table things (id bigint primary key, bad int, exact numeric(38, 9), big bigint,
        ratio double precision, at timestamp, instant timestamptz, day date, bytes bytea,
        tags int[], doc jsonb, ok boolean, word text);
    insert into things select i, 1, 12345678901234567890123456789.123456789,
        9223372036854775807 - i, 0.1 + 0.2, '2017-01-01 10:00:00.123456',
        '2017-01-01 10:00:00.000001+02', '2017-02-03', '\\x00ff5c', '{1,null,3}',
        '{"a": "\\""}', true, E'tab\\t"quote" \\\\ ä' from generate_series(1, 2) as i;
    insert into things (id, bad, ratio) values (3, 1, 'nan'), (4, 1, '-infinity');
"""


def test_no_value_is_bent_in_quarantine(project: Project, postgres: str) -> None:
    address = database(postgres, "exact")
    with psycopg.connect(address) as connection:
        connection.execute(EXACT)
    table = "  {name}: {{table: things, primary_key: [id], write: merge, rules: [{rule}]}}"
    tables = [
        table.format(name="plain", rule="1 = 1"),
        table.format(name="things", rule="bad <> 1"),
    ]
    project.declare("erp", "sql_database", address, "\n".join(tables))
    loads = project.load()
    assert counts_of(loads["things"]) == (4, 0, 4, 0)
    tables[1] = table.format(name="things", rule="1 = 1")
    project.declare("erp", "sql_database", address, "\n".join(tables))
    assert _counted(replay_all("erp.things")) == [("things", 4, 0, 0)]
    # As text, since nan is not nan.
    rows = [str(project.rows(f"raw_erp.{name}", order="id")) for name in ("plain", "things")]
    assert rows[0] == rows[1]
    assert project.types("raw_erp.things") == project.types("raw_erp.plain")
    assert project.rows("quarantine_erp.things") == []


def test_children_come_back_with_their_row(project: Project, api: tuple[Api, str]) -> None:
    server, address = api
    server.rows["leads"] = [
        {"id": i, "kind": "k" if i else None, "tags": [{"t": i}, {"t": 9}]} for i in range(3)
    ]
    auth = f"auth: {{type: bearer, token: {TOKEN}}}, paginator: {{type: json_link}}"
    endpoint = "endpoint: {path: leads, data_selector: data}"

    def declare(contract: str) -> None:
        table = f"  leads: {{primary_key: [id], write: merge, {contract}{endpoint}}}"
        connection = f"{{base_url: '{address}', {auth}}}".replace(
            "link}", "link, next_url_path: next}"
        )
        project.declare("crm", "rest_api", connection, table)

    declare("contract: {required: [kind]}, ")
    assert counts_of(project.load()["leads"]) == (3, 2, 1, 0)
    assert len(project.rows("quarantine_crm.leads__tags")) == 2
    assert _counted(replay_all("crm.leads__tags")) == [("leads__tags", 0, 0, 0)]
    declare("")
    done = [("leads__tags", 2, 0, 0), ("leads", 1, 0, 0)]
    assert sorted(_counted(replay_all("crm.leads"))) == sorted(done)
    assert [row["id"] for row in project.rows("raw_crm.leads", "id", "id")] == [0, 1, 2]
    assert len(project.rows("raw_crm.leads__tags")) == 6
    assert project.rows("quarantine_crm.leads__tags") == []
    before = project.versions()
    assert counts_of(project.load()["leads"])[1:] == (0, 0, 3)
    assert {**project.versions(), "tarn.loads": 0} == {**before, "tarn.loads": 0}


def test_what_could_not_be_read_and_what_the_table_has_no_column_for_stay(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    _give(monkeypatch, [pa.RecordBatch.from_pydict(BATCH), REJECTED], is_objects=False)
    (project.path / "drop").mkdir()
    tables = "  ids: {path: '*', primary_key: [id], write: merge, columns: {id: bigint}}"
    project.declare("drop", "files", "drop", tables)
    project.load()
    assert _counted(replay_all("drop")) == [("ids", 0, 0, 2)]


@pytest.mark.parametrize("landmark", ["_tarn/replay/shop", "raw_shop/things", "quarantine_shop"])
@pytest.mark.parametrize("delay", [0, 0.03])
def test_a_replay_killed_at_any_point_neither_loses_nor_doubles(
    project: Project, landmark: str, delay: float
) -> None:
    project.sql("create table things (id bigint, amount decimal(10,2));")
    values = ", ".join(f"({i}, {-1 if i % 2 else 1})" for i in range(2000))
    # Rows without key and twice the same: only the note tells what was loaded.
    project.sql(f"insert into things values {values}, (1, -1), (3, -1);")
    _declare(project, "amount >= 0", "write: append")
    assert counts_of(project.load()["things"]) == (2002, 1000, 1002, 0)
    _declare(project, "amount >= -10", "write: append")
    code = "from tarn.ingestion.review import replay_all; replay_all('shop')"
    place = project.path / "lake" / landmark
    before = set(place.rglob("*"))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=project.path)
    while process.poll() is None:
        if set(place.rglob("*")) != before:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.wait()
    replay_all("shop")
    assert len(project.rows("raw_shop.things")) == 2002
    assert project.rows("quarantine_shop.things") == []
    assert not [path for path in (project.path / "lake/_tarn").rglob("*") if path.is_file()]


def test_the_command_line_lists_shows_replays_and_discards(project: Project) -> None:
    project.file("a.csv", "id,amount\n1,1\n2,much\n3,little\n4,\n")
    table = "  things: {path: a.csv, primary_key: [id], write: merge, columns: {amount: bigint}"
    project.declare("drop", "files", "drop", f"{table}, contract: {{required: [amount]}}}}")
    project.load()

    def said(*words: str, given: str = "") -> str:
        result = CliRunner().invoke(cli, ["quarantine", *words], input=given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.output

    listed = [line.split() for line in said("list", "drop").splitlines()[1:]]
    assert [line[:2] for line in listed] == [["drop.things", "2"], ["drop.things", "1"]]
    assert "amount is not bigint" in said("list")
    assert "a.csv" in said("show", "drop.things", "--reason", "'much'")
    assert [row.reason for row in kept_rows(project.lake, "drop.things", "null")] == [
        "amount is null"
    ]
    project.declare("drop", "files", "drop", f"{table}}}")
    assert "things: 1 loaded, 2 stay" in said("replay", "drop")
    assert "Aborted" in said("discard", "drop.things", given="n\n")
    assert "1 rows are forgotten" in said("discard", "drop", "--reason", "'much'", "--yes")
    assert "1 rows are forgotten" in said("discard", "drop", "--yes")
    assert "Nothing is in quarantine" in said("list")
    with pytest.raises(TarnError, match="nothing of 'dorp' is in quarantine"):
        discard(project.lake, "dorp")


def test_drift_and_failures_are_told_to_a_webhook_and_a_dead_one_fails_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def hear(request: Request) -> tuple[int, dict[str, str], bytes]:
        heard.append(json.loads(request.body)["text"])
        return 200, {}, b"ok"

    project.sql(THINGS + "insert into things values (1, 1, null);")
    _declare(project, "1 = 1")
    with serving(hear) as address:
        monkeypatch.setenv("TARN_ALERT_WEBHOOK", f"{address}/s3cret")
        settings.cache_clear()
        project.load()
        assert heard == []
        project.sql("alter table things add column colour text;")
        project.load()
        project.sql("drop table things;")
        project.load()
    assert heard[0] == "shop.things: new column colour (text) (accepted)"
    assert heard[1].startswith("shop.things failed: ")
    project.sql(f"{THINGS} alter table things add column colour text;")
    project.sql("insert into things values (1, 1, null, null);")
    assert project.load()["things"].status != "failed"
    assert "no alert was sent" in caplog.text
    assert "s3cret" not in caplog.text
