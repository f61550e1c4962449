"""The CRM's REST API: leads, contacts, visits and opened e-mails.

Contacts are the real households that campaigns were sent to, visits the real days on which they
handed in coupons, with those coupons. Leads are real households before their real first receipt.
Simulated, always the same way, from the numbers of households and campaigns: consents, e-mails
that were opened, where leads came from and when, and the leads that were lost.
"""

import json
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from demo import source
from demo.source import report

CLIENT_ID, GRANT = "lakehouse", "client_credentials"
TOKEN_SECONDS = 300
PAGE_SIZE, MAX_PAGE_SIZE = 250, 1000

FORMAT = "'%Y-%m-%dT%H:%M:%SZ'"
# One of ten takes post only. Of the others each third mail is opened, and each whose coupon is
# redeemed, up to three days after the campaign's first morning.
VIEWS = {
    "recipients": """
        select household_id, campaign_id, start_date, household_id % 10 != 0 as takes_email
        from campaigns inner join campaign_descriptions using (campaign_id)
    """,
    "arrivals": """
        select household_id, min(transaction_timestamp) as arrived_at
        from transactions group by household_id having arrived_at >= '2017-02-01'
    """,
    "prospects": """
        select 'L' || household_id as lead_id, household_id, household_id % 3 as origin,
            arrived_at - to_days(cast(1 + household_id % 30 as integer)) as created_at,
            arrived_at as closed_at, 'won' as status
        from arrivals
        union all
        select 'L' || household_id || 'X', null, household_id % 3,
            arrived_at - interval 20 day, arrived_at + interval 40 day, 'lost'
        from arrivals where household_id % 2 = 0
    """,
}
RESOURCES = {
    "contacts": f"""
        select 'C' || household_id as contact_id, household_id,
            'household-' || household_id || '@example.com' as email,
            {{'email': takes_email, 'post': true}} as consent,
            strftime(min(start_date) + interval 5 hour, {FORMAT}) as updated_at
        from recipients group by household_id, takes_email order by updated_at, household_id
    """,
    "leads": f"""
        select lead_id, household_id, ['flyer', 'referral', 'website'][origin + 1] as channel,
            case when closed_at < '2018-01-01' then status else 'open' end as status,
            strftime(created_at, {FORMAT}) as created_at,
            case when closed_at < '2018-01-01' then strftime(closed_at, {FORMAT}) end as closed_at,
            case when closed_at < '2018-01-01' then strftime(closed_at, {FORMAT})
                else strftime(created_at, {FORMAT}) end as updated_at
        from prospects order by updated_at, lead_id
    """,
    "visits": f"""
        select 'V' || household_id || '-' || strftime(redemption_date, '%Y%m%d') as visit_id,
            'C' || household_id as contact_id,
            strftime(redemption_date, '%Y-%m-%d') as visited_on,
            list({{'coupon_upc': coupon_upc, 'campaign_id': campaign_id}}
                order by coupon_upc, campaign_id) as coupons,
            strftime(redemption_date + interval 30 hour, {FORMAT}) as updated_at
        from coupon_redemptions group by household_id, redemption_date
        order by updated_at, visit_id
    """,
    "email_opens": f"""
        select 'O' || campaign_id || '-' || household_id as open_id,
            'C' || household_id as contact_id, campaign_id,
            ['phone', 'desktop', 'tablet'][(household_id + campaign_id) % 3 + 1] as device,
            strftime(start_date + to_hours(8 + (31 * household_id + 17 * campaign_id) % 72),
                {FORMAT}) as opened_at,
            opened_at as updated_at
        from recipients
        where takes_email and ((household_id + 2 * campaign_id) % 3 = 0
            or (household_id, campaign_id) in
                (select (household_id, campaign_id) from coupon_redemptions))
        order by updated_at, open_id
    """,
}


def make(file: Path) -> None:
    """Write each resource's rows, in the order of `updated_at`, into one JSON file."""
    with source.connect() as session:
        for name, rows in VIEWS.items():
            session.execute(f"create view {name} as {rows}")
        made = {}
        for name, rows in RESOURCES.items():
            texts = session.execute(f"select to_json(item) from ({rows}) as item").fetchall()
            made[name] = [json.loads(text) for (text,) in texts]
            report(f"crm: {len(made[name]):>15,} {name}")
    file.write_text(json.dumps(made))


def app(file: Path, secret: str) -> FastAPI:
    """Build the API over what `make` wrote, for the client `lakehouse` with its secret."""
    api = FastAPI(title="CRM API", docs_url=None, redoc_url=None)
    tokens = _Tokens(secret)

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    api.post("/oauth/token")(tokens.give)
    for name, rows in json.loads(file.read_text()).items():
        api.get(f"/{name}", name=name, dependencies=[Depends(tokens.check)])(_endpoint(rows))
    return api


class _Tokens:
    """OAuth2's client credentials: tokens live for some minutes, and as long as the server."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.expiries: dict[str, float] = {}

    async def give(self, request: Request) -> dict[str, Any]:
        form = dict(parse_qsl((await request.body()).decode()))
        sent = form.get("client_secret", "").encode()
        is_known = secrets.compare_digest(sent, self.secret.encode())
        is_client = (form.get("grant_type"), form.get("client_id")) == (GRANT, CLIENT_ID)
        if not (is_client and is_known):
            raise HTTPException(401, "invalid_client")
        token = secrets.token_urlsafe(16)
        self.expiries[token] = time.monotonic() + TOKEN_SECONDS
        return {"access_token": token, "token_type": "bearer", "expires_in": TOKEN_SECONDS}

    async def check(
        self,
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        if time.monotonic() >= self.expiries.get(sent.credentials if sent else "", 0.0):
            detail = "get a token from /oauth/token"
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


def _endpoint(rows: list[dict[str, Any]]) -> Callable[..., Any]:
    async def list_rows(
        page: Annotated[int, Query(ge=1)] = 1,
        per_page: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = PAGE_SIZE,
        modified_since: datetime | None = None,
    ) -> dict[str, Any]:
        """A page of the rows by `updated_at`, from `modified_since` on."""
        since = modified_since.astimezone(UTC).isoformat()[:19] if modified_since else ""
        found = [row for row in rows if row["updated_at"] >= since]
        start = (page - 1) * per_page
        pages = {"page": page, "pages": ceil(len(found) / per_page), "total": len(found)}
        return {"items": found[start : start + per_page], **pages}

    return list_rows
