"""The upstream systems of `python -m demo` against the original: real servers, real clients."""

import hashlib
import json
import re
import signal
import socket
import sqlite3
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import delta_sharing
import duckdb
import psycopg
import pytest
import requests  # type: ignore[import-untyped]

from tests.engine.demos import (
    PRINT_ENVIRONMENT,
    Environment,
    demo,
    make,
    original,
    run,
    run_demo,
    serving,
    started,
)
from tests.engine.postgres import database, postgres

__all__ = ["demo", "original", "postgres", "run"]

COUNTS = {
    "campaigns": 27,
    "campaign_recipients": 6_589,
    "coupons": 1_197,
    "coupon_redemptions": 2_102,
}
FOLDERS = ("catalogue", "media", "streams")
MONEY = ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")
CENTS = ", ".join(f"sum(cast(round(100 * {column}) as bigint))" for column in MONEY)
ITEM_TOTALS = f"select count(*), sum(quantity), sum(product_id), {CENTS} from "

Rows = list[dict[str, Any]]


@pytest.fixture
def api(demo: Environment) -> requests.Session:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {demo['MARKETING_API_TOKEN']}"
    return session


@pytest.fixture
def crm(demo: Environment) -> requests.Session:
    form = {"client_id": "lakehouse", "client_secret": demo["CRM_CLIENT_SECRET"]}
    address = f"{demo['CRM_API_URL']}/oauth/token"
    answer = requests.post(address, {"grant_type": "client_credentials", **form}).json()
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {answer['access_token']}"
    return session


def _get(session: requests.Session, url: str, **query: Any) -> requests.Response:
    """GET that waits when told to, as a polite client does."""
    while (response := session.get(url, params=query)).status_code == 429:
        time.sleep(float(response.headers["Retry-After"]))
    return response


def _pages(session: requests.Session, url: str, **query: Any) -> Iterator[Rows]:
    page = _get(session, url, **query).json()
    yield page["data"]
    while page["next"]:
        page = _get(session, page["next"]).json()
        yield page["data"]


def _all(session: requests.Session, url: str, **query: Any) -> Rows:
    return [row for page in _pages(session, url, **query) for row in page]


def _digests(run: Path) -> Environment:
    files = [
        run / "pos.db",
        run / "marketing.json",
        run / "trends.json",
        run / "crm.json",
        *(f for name in FOLDERS for f in (run / name).rglob("*") if f.is_file()),
    ]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _free(*ports: int) -> bool:
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:
                return False
    return True


# The program. First, while nothing of ours is being served.


def test_serves_in_the_foreground_until_told_to_stop(run: Path) -> None:
    until = time.monotonic() + 60
    while not _free(*range(8801, 8808)):
        assert time.monotonic() < until, "another demo holds the default ports"
        time.sleep(0.1)
    with started(run) as process:
        assert process.stdout is not None
        exports = dict(
            process.stdout.readline().removeprefix("export ").strip().split("=", 1)
            for _ in range(15)
        )
        assert exports["MARKETING_API_URL"] == "http://127.0.0.1:8801"
        assert requests.get("http://127.0.0.1:8801/health").json() == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert _free(*range(8801, 8808))


def test_what_is_made_is_not_made_again(run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    assert "made" not in make(run)
    after = {file: file.stat().st_mtime_ns for file in before if file.name != ".lock"}
    assert after.items() <= before.items()


def test_a_kill_while_making_leaves_nothing_that_is_believed(run: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / ".pos.db.unfinished"
    with started(tmp_path, "make") as process:
        while not (unfinished.exists() and unfinished.stat().st_size > 20_000_000):
            assert process.poll() is None, "made before it could be killed"
            time.sleep(0.01)
        process.kill()
    assert not (tmp_path / "pos.db").exists()
    assert not (tmp_path / ".pos.db.made").exists()
    make(tmp_path)
    assert _digests(tmp_path) == _digests(run), "made anew, and the same to the byte"
    assert not list(tmp_path.glob("*unfinished*"))


@pytest.mark.parametrize(
    ("command", "code"),
    [(["false"], 1), (["sh", "-c", "kill -9 $$"], 137), (["no-such-command-here"], 127)],
)
def test_ends_as_its_command_ends(run: Path, command: list[str], code: int) -> None:
    assert run_demo(run, "--", *command).returncode == code


def test_signals_are_passed_on_and_nothing_is_left_behind(run: Path) -> None:
    script = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
{PRINT_ENVIRONMENT}
time.sleep(60)
"""
    with started(run, "--", sys.executable, "-c", script) as process:
        assert process.stdout is not None
        environment = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 9
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{environment['MARKETING_API_URL']}/health")


def test_a_second_demo_takes_other_ports_and_the_first_keeps_its_profile(
    run: Path, demo: Environment
) -> None:
    with serving(run) as second:
        assert second["MARKETING_API_URL"] != demo["MARKETING_API_URL"]
        assert requests.get(f"{second['MARKETING_API_URL']}/health").ok
        profile = Path(second["MARKET_RESEARCH_PROFILE"])
        assert len(delta_sharing.SharingClient(str(profile)).list_all_tables()) == 1
        assert profile != Path(demo["MARKET_RESEARCH_PROFILE"])
    assert not profile.exists()
    assert Path(demo["MARKET_RESEARCH_PROFILE"]).exists()


def test_the_foreground_demo_refuses_a_taken_port(run: Path) -> None:
    with socket.socket() as ours:
        with suppress(OSError):  # somebody else's already
            ours.bind(("127.0.0.1", 8803))
            ours.listen()
        refused = run_demo(run)
    assert refused.returncode == 1
    assert re.search(r"port 880[1-7]: Address already in use", refused.stderr)


def test_a_command_sees_the_database_it_was_given(run: Path, demo: Environment) -> None:
    assert demo["POS_DATABASE_URL"] == f"sqlite:///{run}/pos.db"
    given = run_demo(run, "--", "printenv", "POS_DATABASE_URL", POS_DATABASE_URL="postgresql://h/d")
    assert given.stdout == "postgresql://h/d\n"


def test_secrets_are_kept_and_for_the_owner_only(run: Path, demo: Environment) -> None:
    names = ("marketing", "market_research", "trends", "crm", "vans")
    secrets = [run / f"{name}.token" for name in names]
    assert demo["MARKETING_API_TOKEN"] == secrets[0].read_text()
    profile = Path(demo["MARKET_RESEARCH_PROFILE"])
    for file in [*secrets, profile, *run.glob("brokers.*.json")]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


# The tills.


def test_sqlite_tills_hold_every_line(run: Path, original: duckdb.DuckDBPyConnection) -> None:
    with sqlite3.connect(f"file:{run}/pos.db?mode=ro", uri=True) as tills:
        items = tills.execute(ITEM_TOTALS + "basket_items").fetchone()
        assert items == original.execute(ITEM_TOTALS + "transactions").fetchone()
        assert (items[0], items[3]) == (1_469_307, 459_603_958)
        counts = {"baskets": 155_848, "households": 2_469, "stores": 457, "web_receipts": 305}
        for table, count in counts.items():
            assert tills.execute(f"select count(*) from {table}").fetchone() == (count,)
        assert tills.execute("pragma foreign_key_check").fetchall() == []
        assert tills.execute("pragma integrity_check").fetchone() == ("ok",)


def test_sqlite_tills_spell_types_as_a_client_expects(run: Path) -> None:
    with sqlite3.connect(f"file:{run}/pos.db?mode=ro", uri=True) as tills:
        columns = tills.execute("select name, type, pk from pragma_table_info('basket_items')")
        described = {name: (kind, key) for name, kind, key in columns}
        assert described["line_number"] == ("bigint", 2)
        assert described["sales_value"][0] == "decimal(12,2)"
        assert described["updated_at"][0] == "timestamp"
        first = tills.execute("select * from baskets order by sold_at, basket_id").fetchone()
        assert first == (
            31198570044, 900, 330, 1, "2017-01-01 11:53:26", "2017-01-01 12:53:26"
        )  # fmt: skip
        plan = tills.execute("explain query plan select * from baskets where updated_at > '2018'")
        assert "baskets_updated_at" in plan.fetchone()[-1]


def test_postgres_tills_are_the_same(
    tmp_path: Path, original: duckdb.DuckDBPyConnection, postgres: str
) -> None:
    url = database(postgres, "tills")
    driver_url = url.replace("postgresql://", "postgresql+psycopg://")
    loaded = run_demo(tmp_path, "postgres", driver_url)
    assert loaded.returncode == 0, loaded.stderr
    with psycopg.connect(url) as tills:
        items = tills.execute(ITEM_TOTALS + "basket_items").fetchone()
        assert items == original.execute(ITEM_TOTALS + "transactions").fetchone()
        baskets = tills.execute("select count(*), count(distinct household_id) from baskets")
        assert baskets.fetchone() == (155_848, 2_469)
        kinds = tills.execute("""
            select format_type(atttypid, atttypmod) from pg_attribute
            where attrelid = 'basket_items'::regclass
                and attname in ('sales_value', 'updated_at') order by attnum
        """)
        assert kinds.fetchall() == [("numeric(12,2)",), ("timestamp without time zone",)]
        keys = tills.execute(
            "select contype::text from pg_constraint where connamespace = 'public'::regnamespace"
        )
        assert Counter(kind for (kind,) in keys) == {"p": 5, "f": 4}
    again = run_demo(tmp_path, "postgres", url)
    assert again.returncode == 1
    assert '"stores" already exists' in again.stderr


# The catalogue.


def test_catalogue_files_are_the_original(run: Path, original: duckdb.DuckDBPyConnection) -> None:
    products = f"read_csv('{run}/catalogue/products.csv', all_varchar = true)"
    text = "select columns(*)::varchar from products"
    for one, other in ((f"from {products}", text), (text, f"from {products}")):
        assert original.sql(f"{one} except all {other}").fetchall() == []
    assert original.sql(f"select count(*) from {products}").fetchone() == (92_331,)

    pattern = f"{run}/catalogue/promotions/promotions_2017_w*.parquet"
    weeks = f"read_parquet('{pattern}', filename = true)"
    columns = "product_id, store_id, week, display_location, mailer_location"
    total = f"select count(*), sum(hash({columns}))"
    filed = original.sql(f"{total} from {weeks}").fetchone()
    assert filed == original.sql(f"{total} from promotions").fetchone()
    assert filed is not None
    assert filed[0] == 20_940_529
    named = original.sql(f"select distinct week, right(filename, 11) from {weeks} order by week")
    assert named.fetchall() == [(week, f"w{week:02}.parquet") for week in range(1, 54)]


def test_catalogue_names_every_store(run: Path, original: duckdb.DuckDBPyConnection) -> None:
    stores = json.loads((run / "catalogue" / "stores.json").read_text())
    known = original.sql("select distinct store_id from transactions").fetchall()
    assert sorted(store["store_id"] for store in stores) == sorted(i for (i,) in known)
    assert {store["store_format"] for store in stores} == {"small", "medium", "large"}
    assert set(stores[0]) == {"store_id", "store_name", "store_format", "time_zone"}


# The marketing API.


@pytest.mark.parametrize("resource", COUNTS)
def test_pages_give_every_row_once_in_order(
    demo: Environment, api: requests.Session, resource: str
) -> None:
    pages = list(_pages(api, f"{demo['MARKETING_API_URL']}/{resource}", page_size=100))
    rows = [row for page in pages for row in page]
    assert len(rows) == len({json.dumps(row) for row in rows}) == COUNTS[resource]
    assert [len(page) for page in pages[:-1]] == [100] * (len(pages) - 1)
    updates = [row["updated_at"] for row in rows]
    assert updates == sorted(updates)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", update) for update in updates)


def test_marketing_rows_are_the_original(
    demo: Environment, api: requests.Session, original: duckdb.DuckDBPyConnection
) -> None:
    url = demo["MARKETING_API_URL"]
    campaigns = {tuple(row.values())[:4] for row in _all(api, f"{url}/campaigns")}
    assert campaigns == set(
        original.sql("""
            select campaign_id, campaign_type, start_date::date::text, end_date::date::text
            from campaign_descriptions
        """).fetchall()
    )
    recipients = {
        (row["campaign_id"], row["household_id"])
        for row in _all(api, f"{url}/campaign_recipients", page_size=2000)
    }
    assert recipients == set(original.sql("from campaigns").fetchall())
    redemptions = {
        (row["household_id"], row["coupon_upc"], row["campaign_id"], row["redeemed_on"])
        for row in _all(api, f"{url}/coupon_redemptions")
    }
    assert redemptions == set(
        original.sql("select * replace (redemption_date::date::text as redemption_date)"
                     " from coupon_redemptions").fetchall()
    )  # fmt: skip


def test_coupons_carry_their_products_repeats_and_all(
    demo: Environment, api: requests.Session, original: duckdb.DuckDBPyConnection
) -> None:
    coupons = _all(api, f"{demo['MARKETING_API_URL']}/coupons")
    products = Counter(
        (coupon["coupon_upc"], product["product_id"], coupon["campaign_id"])
        for coupon in coupons
        for product in coupon["products"]
    )
    assert products == Counter(original.sql("from coupons").fetchall())
    assert products.total() - len(products) == 4_872


def test_updated_since_gives_only_what_came_after(demo: Environment, api: requests.Session) -> None:
    url = f"{demo['MARKETING_API_URL']}/coupon_redemptions"
    rows = _all(api, url, page_size=2000)
    since = rows[1_000]["updated_at"]
    later = [row for row in rows if row["updated_at"] > since]
    assert 0 < len(later) < 1_102
    for spelling in (since, since.replace("Z", "+00:00"), since.replace("Z", ".5"), since[:-1]):
        assert _all(api, url, page_size=300, updated_since=spelling) == later
    assert _all(api, url, updated_since=rows[-1]["updated_at"]) == []


@pytest.mark.parametrize(
    ("resource", "query"),
    [
        ("campaigns", {"page_size": 0}),
        ("campaigns", {"page_size": 2001}),
        ("coupons", {"page_size": 201}),
        ("campaigns", {"updated_since": "yesterday"}),
        ("campaigns", {"cursor": "rubbish"}),
        ("campaigns", {"cursor": "WzEsIFtdXQ=="}),  # [1, []]
    ],
)
def test_a_bad_parameter_is_named(
    demo: Environment, api: requests.Session, resource: str, query: dict[str, Any]
) -> None:
    response = _get(api, f"{demo['MARKETING_API_URL']}/{resource}", **query)
    assert response.status_code == 422
    assert next(iter(query)) in response.text


def test_only_the_bearer_of_the_token_is_answered(demo: Environment) -> None:
    url = demo["MARKETING_API_URL"]
    assert requests.get(f"{url}/health").json() == {"status": "ok"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer caf\xe9"}):
        refused = requests.get(f"{url}/campaigns", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"


def test_too_many_requests_are_told_to_wait(demo: Environment, api: requests.Session) -> None:
    url = f"{demo['MARKETING_API_URL']}/campaigns"
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: api.get(url), range(60)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    time.sleep(float(refused[0].headers["Retry-After"]))
    assert api.get(url).ok


# The trends API.


def _hashtags(demo: Environment, **query: Any) -> Rows:
    session = requests.Session()
    session.headers["X-Api-Key"] = demo["TRENDS_API_KEY"]
    rows: Rows = []
    while True:
        answer = _get(session, f"{demo['TRENDS_API_URL']}/v1/hashtags", **query).json()
        rows += answer["results"]
        if answer["meta"]["next_cursor"] is None:
            return rows
        query["cursor"] = answer["meta"]["next_cursor"]


def test_hashtags_are_what_baskets_say(
    demo: Environment, original: duckdb.DuckDBPyConnection
) -> None:
    rows = _hashtags(demo, limit=999)
    assert len(rows) == len({(row["day"], row["hashtag"]) for row in rows}) == 3_360
    (bread,) = (row for row in rows if (row["day"], row["rank"]) == ("2017-11-22", 1))
    baskets = """
        select count(distinct basket_id) from transactions inner join products using (product_id)
        where product_category = ? and transaction_timestamp
    """
    that_day = f"{baskets} >= '2017-11-22' and transaction_timestamp < '2017-11-23'"
    assert original.execute(that_day, [bread["topic"]]).fetchone() == (bread["mentions"] / 10,)
    before = f"{baskets} >= '2017-10-25' and transaction_timestamp < '2017-11-22'"
    (count,) = original.execute(before, [bread["topic"]]).fetchall()[0]
    assert bread["usual_mentions"] == round(count * 10 / 28)
    assert bread["hashtag"].lower() == "#" + re.sub("[^a-z]", "", bread["topic"].lower())
    assert _hashtags(demo, since="2017-12-31") == [row for row in rows if row["day"] > "2017-12-30"]


def test_the_trends_api_wants_its_key_and_not_too_many_requests(demo: Environment) -> None:
    url = f"{demo['TRENDS_API_URL']}/v1/hashtags"
    assert requests.get(url, headers={"X-Api-Key": "wrong"}).status_code == 401
    key = {"X-Api-Key": demo["TRENDS_API_KEY"]}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: requests.get(url, headers=key), range(40)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert requests.get(url, headers=key, params={"cursor": "x"}).status_code in (422, 429)


# The CRM's API.


def _crm_rows(demo: Environment, session: requests.Session, resource: str, **query: Any) -> Rows:
    rows: Rows = []
    page, pages = 1, 1
    while page <= pages:
        url = f"{demo['CRM_API_URL']}/{resource}"
        answer = session.get(url, params={"page": page, "per_page": 1000, **query}).json()
        rows += answer["items"]
        page, pages = page + 1, answer["pages"]
    assert len(rows) == answer["total"]
    return rows


def test_crm_rows_are_made_of_the_original(
    demo: Environment, crm: requests.Session, original: duckdb.DuckDBPyConnection
) -> None:
    contacts = _crm_rows(demo, crm, "contacts")
    households = original.sql("select distinct household_id from campaigns").fetchall()
    assert sorted(row["household_id"] for row in contacts) == sorted(i for (i,) in households)
    handed_in = Counter(
        (int(visit["contact_id"][1:]), coupon["coupon_upc"], coupon["campaign_id"],
         visit["visited_on"])
        for visit in _crm_rows(demo, crm, "visits")
        for coupon in visit["coupons"]
    )  # fmt: skip
    redemptions = """
        select household_id, coupon_upc, campaign_id, redemption_date::date::text
        from coupon_redemptions
    """
    assert handed_in == Counter(original.sql(redemptions).fetchall())
    opens = {
        (row["campaign_id"], int(row["contact_id"][1:]))
        for row in _crm_rows(demo, crm, "email_opens")
    }
    assert opens < set(original.sql("from campaigns").fetchall())
    won = {
        row["household_id"]: row["closed_at"]
        for row in _crm_rows(demo, crm, "leads")
        if row["status"] == "won"
    }
    arrived = """
        select household_id, strftime(min(transaction_timestamp), '%Y-%m-%dT%H:%M:%SZ') as arrived
        from transactions group by household_id having arrived between '2017-02' and '2018'
    """
    assert won == dict(original.sql(arrived).fetchall())


def test_the_crm_gives_tokens_to_its_client_only(demo: Environment, crm: requests.Session) -> None:
    form = {"grant_type": "client_credentials", "client_id": "lakehouse", "client_secret": "no"}
    assert requests.post(f"{demo['CRM_API_URL']}/oauth/token", form).status_code == 401
    assert requests.get(f"{demo['CRM_API_URL']}/leads").status_code == 401
    since = "2017-12-31T00:00:00Z"
    later = _crm_rows(demo, crm, "visits", modified_since=since)
    assert later
    assert all(row["updated_at"] >= since for row in later)


# The market researcher's share.


def test_the_official_client_reads_the_share(
    demo: Environment, original: duckdb.DuckDBPyConnection
) -> None:
    profile = demo["MARKET_RESEARCH_PROFILE"]
    client = delta_sharing.SharingClient(profile)
    (table,) = client.list_all_tables()
    assert (table.share, table.schema, table.name) == (
        "market_research",
        "panel",
        "household_demographics",
    )
    assert client.list_tables(client.list_schemas(client.list_shares()[0])[0]) == [table]
    url = f"{profile}#{table.share}.{table.schema}.{table.name}"
    assert delta_sharing.get_table_version(url) == 0
    assert len(delta_sharing.load_as_pandas(url, limit=10)) == 10
    shared = delta_sharing.load_as_pandas(url, version=0)
    assert len(shared) == 801
    expected = original.sql("from demographics order by household_id").df()
    assert shared.equals(expected[shared.columns])


class Share:
    """The protocol by hand, for what the official client does not show."""

    def __init__(self, profile: str) -> None:
        credentials = json.loads(Path(profile).read_text())
        self.endpoint = credentials["endpoint"]
        self.bearer = {"Authorization": f"Bearer {credentials['bearerToken']}"}

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.endpoint}{path}", headers=self.bearer)

    def query(self, **body: Any) -> requests.Response:
        table = "/shares/market_research/schemas/panel/tables/household_demographics"
        return requests.post(f"{self.endpoint}{table}/query", headers=self.bearer, json=body)


def test_the_share_tells_its_version_and_spells_errors_as_the_protocol_does(
    demo: Environment,
) -> None:
    share = Share(demo["MARKET_RESEARCH_PROFILE"])
    table = "/shares/MARKET_RESEARCH/schemas/panel/tables/household_demographics"
    assert share.get(f"{table}/version").headers["Delta-Table-Version"] == "0"
    assert share.get(f"{table}/metadata").headers["Delta-Table-Version"] == "0"
    assert share.query().headers["Delta-Table-Version"] == "0"
    unknown = share.get("/shares/market_research/schemas/panel/tables/nonsense/version")
    assert (unknown.status_code, unknown.json()["errorCode"]) == (404, "NOT_FOUND")
    future = share.query(version=7)
    assert (future.status_code, future.json()["errorCode"]) == (400, "MALFORMED_REQUEST")
    share.bearer = {"Authorization": "Bearer wrong"}
    refused = share.get("/shares")
    assert (refused.status_code, refused.json()["errorCode"]) == (401, "UNAUTHENTICATED")


def test_a_file_is_given_to_the_holder_of_its_signed_address_only(demo: Environment) -> None:
    answer = Share(demo["MARKET_RESEARCH_PROFILE"]).query()
    lines = [json.loads(line) for line in answer.text.splitlines()]
    (file,) = [line["file"] for line in lines if "file" in line]
    assert 0 < file["expirationTimestamp"] / 1000 - time.time() <= 900
    assert len(requests.get(file["url"]).content) == file["size"]
    part = requests.get(file["url"], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"PAR1")
    longer = re.sub(r"expires=\d+", "expires=9999999999", file["url"])
    for address in (longer, file["url"].split("?")[0], file["url"][:-1]):
        assert requests.get(address).status_code == 403
