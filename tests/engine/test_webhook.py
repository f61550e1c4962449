"""Events posted to `tarn collect`: a real server in its own process, real requests, real loads."""

import base64
import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import obstore
import pytest
import requests  # type: ignore[import-untyped]

from tarn.errors import TarnError
from tarn.ingestion.collector import Refusal, is_authentic, parsed
from tarn.ingestion.declarations import declare
from tarn.ingestion.declarations.webhook import HmacAuth, SignedTime, StripeAuth, TokenAuth
from tarn.ingestion.engine import ingest
from tarn.ingestion.options import Options
from tarn.ingestion.sources.webhook import Webhook
from tarn.ingestion.spool import Spool
from tarn.settings import settings
from tarn.storage.lake import Lake
from tarn.storage.s3 import S3
from tests.engine.conftest import s3
from tests.engine.ingesting import Project, counts_of, project

__all__ = ["project", "s3"]

SECRET = "a-secret-of-the-shop"  # noqa: S105
TOKEN = {"authorization": f"Bearer {SECRET}"}
NOW = 1_700_000_000.0
TARN = [sys.executable, "-c", "from tarn.cli import main; main()"]


def declare_shop(project: Project, orders: str = "", auth: str = 'token: "${SHOP_TOKEN}"') -> None:
    connection = f"{{max_bytes: 2000, auth: {{type: token, {auth}}}}}"
    tables = f"  orders: {{{orders}}}\n  visits:\n    description: Each is its own."
    project.declare("shop", "webhook", connection, tables)


@contextmanager
def collecting(project: Project, *arguments: str, **variables: str) -> Iterator["Collector"]:
    command = [*TARN, "collect", "--port", "0", *(arguments or ("--every", "0"))]
    environment = {**os.environ, "SHOP_TOKEN": SECRET, **variables, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=project.path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found, said + process.stdout.read()
        try:
            yield Collector(found[0], process)
        finally:
            process.kill()


class Collector:
    """A running collector."""

    def __init__(self, url: str, process: "subprocess.Popen[str]") -> None:
        self.url, self.process = url, process

    def post(
        self, content: Any, table: str = "orders", headers: Mapping[str, str] = TOKEN
    ) -> requests.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return requests.post(f"{self.url}/shop/{table}", data=body, headers=headers, timeout=30)


def loaded(project: Project, table: str = "orders") -> tuple[int, int, int, int]:
    os.environ["SHOP_TOKEN"] = SECRET
    settings.cache_clear()
    result = project.load("shop")[table]
    assert result.error is None
    return counts_of(result)


@pytest.fixture(autouse=True)
def _no_token_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", SECRET)


def waiting(project: Project, table: str = "orders") -> int:
    return len(Spool(project.lake, "shop", table).segments())


def test_events_land_as_rows_once(project: Project) -> None:
    declare_shop(project)
    with collecting(project) as collector:
        assert collector.post({"Id": 1, "lines": [{"sku": "a"}, {"sku": "b"}]}).status_code == 200
        assert collector.post([{"Id": 2}, {"Id": 3}]).json() == {"accepted": 2}
        assert collector.post([]).json() == {"accepted": 0}
        assert requests.get(f"{collector.url}/health", timeout=30).json() == {"status": "ok"}
    assert waiting(project) == 2
    assert loaded(project) == (3, 3, 0, 0)
    assert waiting(project) == 0
    assert loaded(project) == (0, 0, 0, 0)
    rows = project.rows("raw_shop.orders", "id, _received_at, _event_id", "id")
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert len({row["_event_id"] for row in rows}) == 3
    assert project.types("raw_shop.orders")["_received_at"].startswith("timestamp[us")
    lines = project.rows("raw_shop.orders__lines", "sku", "sku")
    assert [row["sku"] for row in lines] == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "headers", "table", "status", "told"),
    [
        ({"id": 1}, {}, "orders", 401, "token"),
        ({"id": 1}, {"authorization": f"Bearer {SECRET}x"}, "orders", 401, "token"),
        ({"id": 1}, {}, "no_such", 401, "token"),
        ({"id": 1}, TOKEN, "no_such", 404, "no such table"),
        (b'{"id": 1', TOKEN, "orders", 400, "no JSON"),
        (b"\xff\xfe{", TOKEN, "orders", 400, "no JSON"),
        (b'{"id": NaN}', TOKEN, "orders", 400, "no JSON"),
        (b'{"id": "\\ud800"}', TOKEN, "orders", 400, "no JSON"),
        (b'{"id": 1e999}', TOKEN, "orders", 400, "no JSON"),
        (b'{"id": ' + b"9" * 60 + b"}", TOKEN, "orders", 400, "64 bits"),
        (b'{"Id": 1, "id": 2}', TOKEN, "orders", 400, "same name"),
        (b'{"id": 1, "_load_id": 2}', TOKEN, "orders", 400, "may not be called"),
        (b"[" * 900 + b"]" * 900, TOKEN, "orders", 400, "object"),
        ([{"id": 1}, 2], TOKEN, "orders", 400, "object"),
        ({"note": "no id"}, TOKEN, "orders", 422, "event 0 lacks id"),
        ([{"id": 1}, {"id": None}], TOKEN, "orders", 422, "event 1 lacks id"),
        ({"id": 1, "note": "x" * 2000}, TOKEN, "orders", 413, "2000 bytes"),
        ({"id": 1}, {**TOKEN, "content-encoding": "gzip"}, "orders", 415, "as it is"),
    ],
)
def test_what_is_wrong_is_refused_and_not_kept(
    project: Project, shop: Collector, body: Any, headers: dict[str, str], table: str, status: int,
    told: str,
) -> None:  # fmt: skip
    answer = shop.post(body, table, headers)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text
    assert SECRET not in answer.text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """A collector that all refusals share; nothing may be kept."""
    project = Project(tmp_path_factory.mktemp("shop"))
    declare_shop(project, "primary_key: [id]")
    with collecting(project) as collector:
        yield collector
    assert not list((project.path / "lake").rglob("*.jsonl"))


def test_a_body_without_length_is_cut_off_too(shop: Collector) -> None:
    chunks = (b"x" * 1000 for _ in range(5))
    answer = requests.post(f"{shop.url}/shop/orders", data=chunks, headers=TOKEN, timeout=30)
    assert answer.status_code == 413


def test_what_a_sender_repeats_is_known_by_its_header(project: Project) -> None:
    declare_shop(project, "id_header: X-Delivery")
    with collecting(project) as collector:
        assert collector.post({"n": 1}).status_code == 400
        for mark in ("a", "b", "a"):
            collector.post({"n": mark}, headers={**TOKEN, "X-Delivery": mark})
        assert loaded(project) == (3, 2, 0, 1)
        collector.post({"n": "a"}, headers={**TOKEN, "X-Delivery": "a"})
    assert loaded(project) == (1, 0, 0, 1)


def test_the_last_event_of_a_key_counts_where_it_is_merged(project: Project) -> None:
    declare_shop(project, "primary_key: [id], write: merge, rules: ['total >= 0']")
    with collecting(project) as collector:
        for total in (1, 2):
            collector.post({"id": 1, "total": total})
        assert loaded(project) == (2, 1, 0, 1)
        collector.post([{"id": 1, "total": 3}, {"id": 2, "total": -1}])
    assert loaded(project) == (2, 1, 1, 0)
    assert [row["total"] for row in project.rows("raw_shop.orders", "total")] == [3]
    assert waiting(project) == 0


def test_equal_events_without_a_name_are_events_each(project: Project) -> None:
    declare_shop(project)
    with collecting(project) as collector:
        for _ in range(2):
            collector.post({"page": "/"}, "visits")
            assert loaded(project, "visits") == (1, 1, 0, 0)


def test_nothing_acknowledged_is_lost_when_it_is_killed(project: Project) -> None:
    declare_shop(project)
    acknowledged: list[int] = []
    for start in (0, 1000):
        with collecting(project, "--every", "1") as collector, ThreadPoolExecutor(8) as senders:

            def send(number: int, collector: Collector = collector) -> None:
                try:
                    if collector.post({"n": number}).ok:
                        acknowledged.append(number)
                except requests.RequestException:
                    pass

            sent = [senders.submit(send, number) for number in range(start, start + 400)]
            while sum(each.done() for each in sent) < 200:
                time.sleep(0.01)
            collector.process.send_signal(signal.SIGKILL)
    loaded(project)
    found = [row["n"] for row in project.rows("raw_shop.orders", "n", "n")]
    assert set(acknowledged) <= set(found)
    assert len(acknowledged) >= 400
    assert len(found) == len(set(found)), "none is doubled"


def test_a_load_that_is_killed_before_it_drops_segments_doubles_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_shop(project)
    with collecting(project) as collector:
        collector.post([{"n": 1}, {"n": 1}])
        with monkeypatch.context() as broken:
            broken.setattr(Spool, "drop", lambda *_: None)
            assert loaded(project) == (2, 2, 0, 0)
        collector.post({"n": 2})
    assert loaded(project) == (3, 1, 0, 2)
    assert waiting(project) == 0


def test_the_collector_lands_events_itself_and_tells_how_many(project: Project) -> None:
    declare_shop(project)
    with collecting(project, "--every", "1") as collector:
        collector.post([{"n": 1}, {"n": 2}])
        assert collector.process.stdout is not None
        lines = []
        for line in iter(collector.process.stdout.readline, ""):
            lines.append(line)
            if "rows landed" in line:
                break
    text = "".join(lines)
    assert "shop.orders: 2 events came" in text
    assert "shop.orders: 2 rows landed" in text
    assert waiting(project) == 0


def test_no_way_to_load_drops_events_that_it_does_not_land(project: Project) -> None:
    declare_shop(project)
    with collecting(project) as collector:
        for number in range(3):
            collector.post({"n": number})
    shop = ["shop"]
    assert ingest(shop, options=Options(dry_run=True))[0].rows.accepted == 3
    assert ingest(shop, options=Options(limit=1))[0].rows.accepted == 1
    assert waiting(project) == 3
    assert loaded(project) == (3, 3, 0, 0)
    Spool(project.lake, "shop", "orders").put([{"n": 9, "_event_id": "z", "_received_at": "2024"}])
    (result,) = ingest(shop, options=Options(full_refresh=True, tables=("orders",)))
    assert "nothing to read again" in str(result.tables[0].error)
    assert waiting(project) == 1
    assert len(project.rows("raw_shop.orders")) == 3


def test_a_segment_that_was_cut_by_a_crash_is_not_seen(project: Project) -> None:
    declare_shop(project)
    spool = Spool(project.lake, "shop", "orders")
    spool.put([{"n": 1, "_event_id": "a", "_received_at": "2024-01-01T00:00:00+00:00"}])
    folder = Path(project.lake.root, spool.folder)
    draft = folder / "00-00.jsonl.draft"
    draft.write_text('{"n": 2, "_ev')
    assert len(spool.segments()) == 1
    os.utime(draft, (0, 0))
    spool.segments()
    assert not draft.exists()
    assert loaded(project) == (1, 1, 0, 0)


def test_a_lake_that_cannot_be_written_is_not_said_to_be_safe(project: Project) -> None:
    declare_shop(project)
    blocked = project.path / "lake/_tarn/webhook/shop"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("not a folder")
    with collecting(project) as collector:
        assert collector.post({"n": 1}).status_code == 503
        blocked.unlink()
        assert collector.post({"n": 1}).status_code == 200
    assert loaded(project) == (1, 1, 0, 0)


def test_it_does_not_start_without_a_secret(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_shop(project)
    monkeypatch.delenv("SHOP_TOKEN")
    done = subprocess.run([*TARN, "collect"], cwd=project.path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "SHOP_TOKEN is not set" in done.stderr
    declare_shop(project, auth="token: short")
    done = subprocess.run([*TARN, "collect"], cwd=project.path, capture_output=True, text=True)
    assert "at least 8 characters" in done.stderr
    assert "short" not in done.stderr.replace("shorter", "")


def test_events_are_kept_in_a_lake_on_s3(
    project: Project, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"s3://lake/{uuid4().hex}"
    for name, value in {**s3, "TARN_LAKE": root}.items():
        monkeypatch.setenv(name, value)
    declare_shop(project)
    project.lake = Lake(root, S3(s3), work_dir=project.path / ".tarn")
    with collecting(project) as collector:
        assert collector.post([{"n": 1}, {"n": 2}]).status_code == 200
        assert waiting(project) == 1
        assert loaded(project) == (2, 2, 0, 0)
    assert waiting(project) == 0
    assert not list(obstore.list(project.lake.objects, "_tarn/webhook").collect())


def test_a_source_says_what_waits(project: Project) -> None:
    declare_shop(project)
    Spool(Lake(str(project.path / "lake")), "shop", "visits").put([{"n": 1}])
    source = Webhook(declare(project.path / "ingestion/shop.yml"), settings())
    told = source.check()
    assert "1 segments wait" in told[1]
    assert "POST /shop/orders" in told[0]


def test_tokens_and_signatures_are_told_from_wrong_ones() -> None:
    body = b'{"id": 1}'
    token = TokenAuth(type="token", token=SECRET, header="X-Token")
    assert is_authentic(token, {"X-Token": SECRET}, body, NOW)
    assert not is_authentic(token, {"X-Token": "é"}, body, NOW)

    github = HmacAuth(type="hmac", secret=SECRET, header="X-Hub-Signature-256", prefix="sha256=")
    good = hmac.new(SECRET.encode(), body, hashlib.sha256)
    assert is_authentic(github, {"X-Hub-Signature-256": f"sha256={good.hexdigest()}"}, body, NOW)
    assert not is_authentic(github, {"X-Hub-Signature-256": good.hexdigest()}, body, NOW)
    assert not is_authentic(
        github, {"X-Hub-Signature-256": f"sha256={good.hexdigest()}"}, b"{}", NOW
    )

    shopify = HmacAuth(type="hmac", secret=SECRET, header="X-Shopify", encoding="base64")
    text = base64.b64encode(good.digest()).decode()
    assert is_authentic(shopify, {"X-Shopify": text}, body, NOW)
    assert not is_authentic(shopify, {}, body, NOW)


def test_signatures_of_another_time_are_refused() -> None:
    body = b'{"id": "{timestamp}"}'
    stamp = SignedTime(header="X-Time", signed="v0:{timestamp}:{body}")
    slack = HmacAuth(
        type="hmac", secret=SECRET, header="X-Signature", prefix="v0=", timestamp=stamp
    )
    for at, is_good in ((NOW, True), (NOW - 301, False), (NOW + 301, False)):
        sent = str(int(at))
        signed = hmac.new(SECRET.encode(), f"v0:{sent}:".encode() + body, hashlib.sha256)
        headers = {"X-Time": sent, "X-Signature": f"v0={signed.hexdigest()}"}
        assert is_authentic(slack, headers, body, NOW) is is_good
    assert not is_authentic(slack, {**headers, "X-Time": "now"}, body, NOW)


def test_stripes_header_holds_time_and_signatures() -> None:
    body = b"{}"
    stripe = StripeAuth(type="stripe", secret=SECRET)
    good = hmac.new(SECRET.encode(), b"1700000000.{}", hashlib.sha256).hexdigest()
    header = f"t=1700000000,v1={'0' * 64},v1={good},v0=x"
    assert is_authentic(stripe, {"stripe-signature": header}, body, NOW)
    assert not is_authentic(stripe, {"stripe-signature": header}, b"[]", NOW)
    assert not is_authentic(stripe, {"stripe-signature": header}, body, NOW + 999)
    for broken in ("", "t=,v1=", f"v1={good}", f"t=1700000000,v0={good}"):
        assert not is_authentic(stripe, {"stripe-signature": broken}, body, NOW)


def test_deep_nesting_is_refused() -> None:
    for levels in (70, 100_000):
        with pytest.raises(Refusal) as refused:
            parsed(b'{"a":' * levels + b"1" + b"}" * levels)
        assert refused.value.detail.startswith("the body is nested too deeply")


def test_there_must_be_a_system_to_collect_for(project: Project) -> None:
    project.declare("shop", "files", "drop", '  x: {path: "*.csv", write: append}')
    from tarn.cli.collect import _webhooks

    with pytest.raises(TarnError, match="no system of kind webhook"):
        _webhooks()
