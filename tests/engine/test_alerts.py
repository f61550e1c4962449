"""Alerts by a clock of the test: what is concluded, when it is told, and what is remembered."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from tarn.errors import TarnError
from tarn.serving.alerts import manual, watching
from tarn.serving.alerts.declaration import Alert, BusinessHours, Deviation
from tarn.serving.alerts.hours import open_since, same_time_before
from tarn.serving.alerts.journal import TAKE_OVER, Event
from tarn.serving.alerts.measuring import pattern, window
from tarn.serving.declarations import read_exposures
from tarn.storage.lake import Lake
from tarn.storage.streams import StreamState, keep
from tests.engine import alerting
from tests.engine.alerting import COUNT, NOW, WEBHOOK, Bench, declared, happen, history, minutes


@pytest.fixture(autouse=True)
def _the_test_begins_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module may have been imported long ago."""
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    monkeypatch.setattr(alerting, "NOW", now)
    monkeypatch.setitem(globals(), "NOW", now)


BEAT = {
    "source": "shop.events", "event_time": "occurred_at", "silent_after": "10m", "late_after": "20m"
}  # fmt: skip
RUN: dict[str, Any] = {
    "kind": "alert",
    "title": "No orders",
    "sql": COUNT,
    "window": "5m",
    "floor": 1,
    "heartbeat": BEAT,
    "business_hours": {"days": ["mon"], "from": "08:00", "to": "20:00", "timezone": "Europe/Rome"},
    "notify": [WEBHOOK],
}


def manifest(project: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """An exposure's file, and the manifest that dbt would make of it."""
    file = "models/exposures/no_orders.yml"
    exposure = {"name": "no_orders", "type": "application", "config": {"meta": {"run": run}}}
    (project / file).parent.mkdir(parents=True, exist_ok=True)
    (project / file).write_text(yaml.safe_dump({"exposures": [exposure]}, sort_keys=False))
    node = {**exposure, "unique_id": "exposure.x.no_orders", "original_file_path": file}
    return {"exposures": {"x": {**node, "depends_on": {"nodes": []}}}}


def test_a_declaration_is_read(tmp_path: Path) -> None:
    [exposure] = read_exposures(manifest(tmp_path, RUN), tmp_path)
    assert isinstance(exposure.run, Alert)
    assert exposure.run.heartbeat is not None
    assert exposure.run.repeat_after == "4h"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"flor": 1}, "no_orders.yml:27: no_orders: unknown key 'flor'; did you mean 'floor'?"),
        ({"heartbeat": {**BEAT, "sourse": 1}}, "unknown key 'sourse'; did you mean 'source'?"),
        ({"business_hours": {"form": "08:00"}}, "key 'from' is missing"),
        ({"business_hours": {**RUN["business_hours"], "form": 1}}, "did you mean 'from'?"),
        ({"business_hours": {**RUN["business_hours"], "timezone": "Rome"}}, "no time zone such as"),
        ({"business_hours": {**RUN["business_hours"], "to": "25:00"}}, "business_hours.to"),
        ({"notify": [{"kind": "pager"}]}, "unknown kind of channel; known: webhook, email"),
        ({"notify": [{**WEBHOOK, "ulr": "x"}]}, "unknown key 'ulr'; did you mean 'url'?"),
        ({"notify": [{"kind": "webhook", "url": "https://x.com/token"}]}, "write ${NAME}"),
        ({"notify": [WEBHOOK, WEBHOOK]}, "names a channel twice"),
        ({"sql": "select 1"}, "sql does not use $window_end"),
        ({"sql": COUNT + "; drop table x"}, "sql must be one select"),
        ({"metric": "orders"}, "give either sql or metric"),
        ({"floor": None}, "give a floor, a ceiling or a deviation"),
        ({"deviation": {"side": "both"}}, "deviation.side"),
        ({"deviation": {"side": "below", "weeks": 3}}, "at_least is more than weeks"),
        ({"window": "5 minutes"}, "no time such as"),
        ({"every": "0s"}, "longer than nothing"),
        ({"message": "{vaule} orders"}, "unknown {vaule}; did you mean 'value'?"),
        ({"message": "{value"}, "expected '}'"),
        ({"heartbeat": {**BEAT, "late_after": None}}, "belong together"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, change: Any, told: str) -> None:
    with pytest.raises(TarnError) as refused:
        read_exposures(manifest(tmp_path, {**RUN, **change}), tmp_path)
    assert told in str(refused.value)
    assert "models/exposures/no_orders.yml:" in str(refused.value)


def hours(opens: str, closes: str, *days: str, zone: str = "Europe/Rome") -> BusinessHours:
    given: dict[str, Any] = {"from": opens, "to": closes, "timezone": zone}
    return BusinessHours.model_validate({**given, "days": days} if days else given)


def utc(text: str, zone: str = "Europe/Rome") -> datetime:
    """A time on the clocks of a zone as an instant."""
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))
    return local.astimezone(UTC).replace(tzinfo=None)


def test_hours_follow_the_clocks_of_their_zone() -> None:
    office = hours("08:00", "20:00", "mon", "tue", "sat", "sun")
    # Clocks went forward on Sunday 2026-03-29: eight o'clock is an hour earlier in UTC.
    for day, begins in (("2026-03-28", 7), ("2026-03-29", 6)):
        since = open_since(office, utc(f"{day} 08:00"))
        assert since == datetime.fromisoformat(day).replace(hour=begins)
        assert open_since(office, utc(f"{day} 07:59")) is None
        assert open_since(office, utc(f"{day} 20:00")) is None
    assert open_since(office, utc("2026-04-01 12:00")) is None


def test_hours_across_midnight_belong_to_the_day_they_begin_on() -> None:
    bar = hours("18:00", "02:00", "fri")
    assert open_since(bar, utc("2026-03-28 01:59")) == utc("2026-03-27 18:00")
    assert open_since(bar, utc("2026-03-28 02:00")) is None
    assert open_since(bar, utc("2026-03-27 01:00")) is None
    # Through the night in which there is no two o'clock, and the one in which there are two.
    night = hours("22:00", "06:00", "sat")
    assert open_since(night, utc("2026-03-29 05:59")) == utc("2026-03-28 22:00")
    assert open_since(night, utc("2026-10-25 05:59")) == utc("2026-10-24 22:00")
    assert open_since(night, utc("2026-10-25 06:00")) is None


def test_hours_that_meet_are_one() -> None:
    since = open_since(hours("00:00", "24:00"), utc("2026-03-29 12:00"))
    assert since is not None
    assert utc("2026-03-29 12:00") - since > timedelta(days=6)
    assert open_since(hours("09:00", "09:00", "mon"), utc("2026-03-31 08:59")) is not None


def test_the_same_time_last_week_is_that_of_the_clocks() -> None:
    monday = utc("2026-03-30 12:00")
    assert same_time_before(monday, 1, "Europe/Rome") == utc("2026-03-23 12:00")
    assert same_time_before(monday, 1, "UTC") == monday - timedelta(weeks=1)


def test_no_orders_no_data_and_late_data_are_three_messages(lake: Lake) -> None:
    bench = Bench(lake, [declared(heartbeat=BEAT)])
    happen(lake, "order", NOW)
    happen(lake, "click", *(NOW + minutes(i) for i in range(12)))
    assert bench.at(NOW + minutes(1)) == []
    # Clicks still come, so it is the business.
    assert bench.at(NOW + minutes(6)) == ["value: opened"]
    assert bench.sent[-1].message.startswith("No orders: 0 in the 5 min to ")
    assert bench.sent[-1].message.endswith("; at least 1 expected")
    # Nothing at all comes, so nobody knows: the first alert waits and is not repeated.
    assert bench.at(NOW + minutes(11)) == ["no_data: opened"]
    assert bench.sent[-1].message.startswith(
        "No orders: no data: nothing of shop.events has been committed since "
    )
    assert bench.at(NOW + timedelta(hours=3)) == []


def test_rows_of_long_ago_are_late_data(lake: Lake) -> None:
    bench = Bench(lake, [declared(heartbeat=BEAT)])
    happen(lake, "order", NOW - minutes(50))
    assert bench.at(NOW + minutes(1)) == ["late_data: opened"]
    message = bench.sent[-1].message
    assert "late data: rows of shop.events come in, but the newest event is of" in message
    assert "50 min behind" in message
    # The backlog has come, so it is known again that nobody orders.
    happen(lake, "click", NOW)
    assert bench.at(NOW + minutes(9)) == ["late_data: resolved", "value: opened"]
    # A pause after an event of its time is no lateness.
    patient = declared("patient", heartbeat={**BEAT, "silent_after": "2h"})
    assert Bench(lake, [patient]).at(NOW + minutes(90)) == ["value: opened"]


def test_the_stream_says_whether_it_is_the_pipe(lake: Lake) -> None:
    happen(lake, "order", NOW)
    at = NOW + minutes(11)

    def told(name: str, state: StreamState | None = None) -> str:
        if state is not None:
            keep(lake, state)
        bench = Bench(lake, [declared(name, heartbeat=BEAT)])
        assert bench.at(at) == ["no_data: opened"]
        return bench.sent[-1].message

    assert told("a").endswith(" UTC")
    running = StreamState("shop", NOW, at, is_continuous=True, is_running=True)
    assert told("b", running).endswith("sees no trouble, so the source is silent")
    trouble = StreamState("shop", NOW, at, True, True, "no broker answers")
    assert told("c", trouble).endswith("; the stream says: no broker answers")
    gone = StreamState("shop", NOW, NOW, True, True)
    assert "; the stream has not run since" in told("d", gone)


def test_a_table_that_was_never_loaded_has_no_data(lake: Lake) -> None:
    bench = Bench(lake, [declared(heartbeat=BEAT)])
    assert bench.at(NOW) == ["no_data: opened"]
    assert "shop.events has never been loaded" in bench.sent[-1].message


def test_an_event_from_the_future_hides_no_lateness(lake: Lake) -> None:
    happen(lake, "order", NOW - minutes(50))
    happen(lake, "order", NOW + minutes(30), sent_at=NOW)
    bench = Bench(lake, [declared(heartbeat={**BEAT, "silent_after": "2h"})])
    assert bench.at(NOW + minutes(31)) == ["late_data: opened"]
    assert "50 min behind" in bench.sent[0].message


def test_upkeep_is_no_sign_of_life(lake: Lake) -> None:
    happen(lake, "order", NOW)
    table = lake.table("raw_shop.events")
    assert table is not None
    happen(lake, "order", NOW)
    table = lake.table("raw_shop.events")
    assert table is not None
    table.optimize.compact()
    beat = {**BEAT, "silent_after": "1m", "event_time": None, "late_after": None}
    assert Bench(lake, [declared(heartbeat=beat)]).at(NOW + minutes(3)) == ["no_data: opened"]


def test_what_is_open_is_told_once_repeated_and_resolved(lake: Lake) -> None:
    alert = declared(repeat_after="1h", resolve_after="10m")
    bench = Bench(lake, [alert])
    happen(lake, "click", NOW)
    assert bench.at(NOW) == ["value: opened"]
    assert [bench.at(NOW + minutes(i)) for i in (1, 2, 30, 59)] == [[]] * 4
    assert bench.at(NOW + minutes(60)) == ["value: repeated"]
    # A restart remembers.
    bench = Bench(lake, [alert])
    assert bench.at(NOW + minutes(61)) == []
    happen(lake, "order", NOW + minutes(70), NOW + minutes(83), NOW + minutes(86))
    assert bench.at(NOW + minutes(71)) == []  # recovering
    assert bench.at(NOW + minutes(76)) == []  # relapsed
    assert bench.at(NOW + minutes(84)) == []  # recovering
    bench = Bench(lake, [alert])
    assert bench.at(NOW + minutes(90)) == []
    happen(lake, "order", NOW + minutes(92))
    assert bench.at(NOW + minutes(94)) == ["value: resolved"]
    assert bench.sent[-1].message.startswith("Resolved after 1 h 34 min: No orders: 1 in ")
    assert bench.at(NOW + minutes(95)) == []
    rows = history(lake)
    assert [row["change"] for row in rows] == [
        "opened", "repeated", "recovering", "relapsed", "recovering", "resolved"
    ]  # fmt: skip
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (rows[0]["value"], rows[0]["lower_bound"], rows[0]["window_end"]) == (0, 1, NOW)
    assert {row["delivery"] for row in rows if row["change"] in ("opened", "resolved")} == {
        "delivered"
    }
    assert rows[0]["delivered_at"] is not None


def test_a_muted_alert_is_recorded_and_not_sent(lake: Lake) -> None:
    alert = declared(repeat_after="10m")
    bench = Bench(lake, [alert])
    happen(lake, "click", NOW)
    manual.mute(bench.journal, alert, timedelta(hours=1), NOW)
    assert bench.at(NOW + minutes(1)) == []
    assert [(row["change"], row["delivery"]) for row in history(lake)] == [
        ("muted", "none"), ("opened", "muted")
    ]  # fmt: skip
    # When it ends, what is still open is told.
    assert bench.at(NOW + minutes(61)) == ["value: repeated"]
    manual.mute(bench.journal, alert, timedelta(hours=1), NOW + minutes(62))
    assert bench.at(NOW + minutes(75)) == []
    [stand] = manual.stands([alert], bench.journal.standings, NOW + minutes(75))
    assert (stand.is_open, stand.muted_until) == (True, NOW + minutes(122))
    manual.unmute(bench.journal, alert, NOW + minutes(76))
    assert bench.at(NOW + minutes(77)) == ["value: repeated"]


def test_who_was_told_nothing_is_told_of_no_resolution(lake: Lake) -> None:
    alert = declared()
    bench = Bench(lake, [alert])
    happen(lake, "click", NOW)
    manual.mute(bench.journal, alert, minutes(3), NOW)
    assert bench.at(NOW) == []
    happen(lake, "order", NOW + minutes(3))
    assert bench.at(NOW + minutes(4)) == []
    assert [row["change"] for row in history(lake)] == ["muted", "opened", "resolved"]


def test_a_process_killed_before_it_notes_sends_once_more_and_then_no_more(lake: Lake) -> None:
    class Killed(BaseException):
        pass

    alert, sent = declared(), list[Event]()
    happen(lake, "click", NOW)

    def killed(event: Event) -> None:
        raise Killed

    first = Bench(lake, [alert], send=sent.append)
    first.journal.note = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        first.at(NOW)
    assert len(sent) == 1
    assert Bench(lake, [alert]).at(NOW + minutes(1)) == ["value: opened"]
    assert Bench(lake, [alert]).at(NOW + minutes(2)) == []
    # Killed before it was sent: nothing is lost.
    second = Bench(lake, [declared("other")])
    second.evaluator.outbox.pump = killed  # type: ignore[assignment]
    with pytest.raises(Killed):
        second.evaluator.round(NOW)
    assert Bench(lake, [declared("other")]).at(NOW + minutes(1)) == ["value: opened"]


def test_a_query_that_hangs_ends(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_LONGEST_QUERY", 0.5)
    happen(lake, "click", NOW)
    endless = COUNT.replace("count(*)", "(select sum(hash(i)) from range(10000000000000) as t (i))")
    bench = Bench(lake, [declared("endless", sql=endless), declared()])
    assert sorted(bench.at(NOW)) == ["failure: opened", "value: opened"]
    told = {each.condition: each.message for each in bench.sent}
    assert "the query takes longer than 0.5 s" in told["failure"]


@pytest.mark.everywhere
def test_two_machines_send_a_change_once(lake: Lake) -> None:
    alerts = [declared()]
    happen(lake, "click", NOW)
    one, other = Bench(lake, alerts, "one"), Bench(lake, alerts, "other")
    for bench in (one, other):
        bench.journal.refresh()
    # The other has not seen the row of the first when it finds the same.
    other.journal.refresh = lambda: ()  # type: ignore[method-assign]
    one.evaluator.round(NOW)
    other.evaluator.round(NOW)
    del other.journal.refresh
    one.evaluator.outbox.flush(NOW)
    assert other.at(NOW + minutes(1)) == []
    assert [each.change for each in one.sent] == ["opened"]
    assert [row["evaluator"] for row in history(lake)] == ["one"]


def test_what_a_lost_machine_has_not_sent_another_sends(lake: Lake) -> None:
    alerts = [declared()]
    happen(lake, "click", NOW)
    lost = Bench(lake, alerts, "lost")
    lost.evaluator.outbox.pump = lambda at: None  # type: ignore[method-assign]
    lost.evaluator.round(NOW)
    other = Bench(lake, alerts, "other")
    assert other.at(NOW + minutes(1)) == []
    assert other.at(NOW + TAKE_OVER + minutes(1)) == ["value: opened"]


def test_one_failing_alert_is_told_once_and_stops_no_other(lake: Lake) -> None:
    happen(lake, "click", NOW)
    wrong = COUNT.replace("raw_shop.events", "raw_shop.evnets")
    bench = Bench(lake, [declared("bad", sql=wrong, heartbeat=BEAT), declared("good")])
    assert sorted(bench.at(NOW)) == ["failure: opened", "value: opened"]
    assert "No orders: cannot be evaluated (models/exposures/bad.yml: bad): Catalog Error" in (
        next(each.message for each in bench.sent if each.condition == "failure")
    )
    # It is tried again at growing intervals, and other conditions of it still are told.
    turn = bench.evaluator._turns["bad"]
    pauses = []
    for _ in range(6):
        pauses.append((turn.due_at - NOW).total_seconds())
        assert "failure: repeated" not in bench.at(turn.due_at)
    assert pauses == sorted(set(pauses))
    assert turn.due_at - NOW - timedelta(seconds=pauses[-1]) <= minutes(15)
    assert "no_data" in {each.condition for each in bench.sent}
    mended = Bench(lake, [declared("bad")])
    assert "failure: resolved" in mended.at(NOW + timedelta(hours=2))


def test_outside_business_hours_nothing_is_concluded(lake: Lake) -> None:
    day = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[NOW.weekday()]
    at = datetime.combine(NOW.date(), datetime.min.time())
    office = {"days": [day], "from": "08:00", "to": "20:00", "timezone": "UTC"}
    happen(lake, "order", at.replace(hour=1))
    bench = Bench(lake, [declared(business_hours=office, window="30m")])
    assert bench.at(at.replace(hour=7, minute=59)) == []
    # The window must have been open from its beginning.
    assert bench.at(at.replace(hour=8, minute=29)) == []
    assert bench.at(at.replace(hour=8, minute=30)) == ["value: opened"]
    assert bench.at(at.replace(hour=21)) == []


@pytest.mark.parametrize(
    ("past", "usual", "bound"),
    [
        ([100, 110, 90, 100, 120], 100, 100 - 4 * 1.4826 * 10),
        ([100, 100, 100, 100], 100, 80),  # never less than a twentieth
        ([100, 5, 100, 100, 100], 100, 80),  # an outage in the past changes little
        ([100, None, 100, 100, 100, 0, 0, None], 100, 80),  # before the shop was
        ([100, 100, 100, 0, 0, 0], None, None),
        ([0, 0, 0, 0, 0], None, None),
        ([], None, None),
    ],
)
def test_a_pattern_is_robust_and_needs_history(
    past: list[float | None], usual: float | None, bound: float | None
) -> None:
    found_usual, found_bound, lacks = pattern(Deviation(side="below"), past)
    assert (found_usual, found_bound) == (usual, bound and pytest.approx(bound))
    assert (lacks is None) == (usual is not None)


def test_a_value_is_held_against_its_own_weekday_and_hour(lake: Lake) -> None:
    for week in range(1, 6):
        happen(lake, "order", *[NOW - timedelta(weeks=week, minutes=1)] * 20)
    happen(lake, "order", *[NOW - timedelta(days=1, minutes=1)] * 90)
    happen(lake, "order", *[NOW - timedelta(minutes=1)] * 10)
    below = declared("below", floor=None, deviation={"side": "below"}, message="{value} of {usual}")
    above = declared("above", floor=None, deviation={"side": "above"})
    young = declared("young", floor=None, deviation={"side": "below", "weeks": 8, "at_least": 6})
    bench = Bench(lake, [below, above, young])
    assert bench.at(NOW) == ["value: opened"]
    assert (bench.sent[0].alert, bench.sent[0].message) == ("below", "10 of 20")
    assert (bench.sent[0].usual, bench.sent[0].lower_bound) == (20, 16)
    lacking = "young: nothing is concluded: history of 5 weeks, and 6 are needed"
    bench.at(NOW + minutes(1))
    assert bench.said.count(lacking) == 1


def test_a_window_of_a_metric_ends_with_a_whole_grain() -> None:
    at = datetime(2026, 3, 30, 12, 34, 56)
    for length, end in (
        ("90m", at.replace(second=0)),
        ("2h", at.replace(minute=0, second=0)),
        ("1d", datetime(2026, 3, 30)),
    ):
        given = {**RUN, "sql": None, "metric": "orders", "window": length}
        assert window(Alert.model_validate(given), at)[1] == end


def test_null_is_not_zero(lake: Lake) -> None:
    happen(lake, "click", NOW)
    bench = Bench(lake, [declared(sql=COUNT.replace("count(*)", "sum(_offset)"))])
    assert bench.at(NOW) == []
    assert bench.at(NOW + minutes(5)) == []
    assert lake.table("tarn.alerts") is None


def test_an_event_is_plain_json_in_the_table(lake: Lake) -> None:
    happen(lake, "click", NOW)
    Bench(lake, [declared()]).at(NOW)
    assert json.loads(history(lake)[0]["delivered_to"]) == ["webhook HOOK"]
