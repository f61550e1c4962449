"""The marketing department's REST API: campaigns, their recipients, coupons and redemptions."""

import json
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response

from demo import source
from demo.bearer import bearer_of
from demo.rate_limit import at_most
from demo.source import report

REQUESTS_PER_SECOND = 20

Key = tuple[float, ...]
"""What rows are ordered by: `updated_at` in seconds since 1970, then the resource's own key."""


@dataclass(frozen=True)
class Resource:
    """One endpoint: its key, its rows as SQL over the source, and its page sizes in rows."""

    key: str
    rows: str
    page_size: int = 500
    max_page_size: int = 2000


# The source has dates only. Simulated: a campaign is entered at 06:00 UTC of its first day with all
# that belongs to it, and a redemption is booked at 06:00 UTC of the day after.
ENTERED_CAMPAIGNS = """
    select *, strftime(start_date + interval 6 hour, '%Y-%m-%dT%H:%M:%SZ') as entered_at
    from campaign_descriptions
"""
RESOURCES = {
    "campaigns": Resource(
        "campaign_id",
        """
        select campaign_id, campaign_type, strftime(start_date, '%Y-%m-%d') as start_date,
            strftime(end_date, '%Y-%m-%d') as end_date, entered_at as updated_at
        from entered_campaigns
        """,
    ),
    "campaign_recipients": Resource(
        "campaign_id, household_id",
        """
        select campaign_id, household_id, entered_at as updated_at
        from campaigns inner join entered_campaigns using (campaign_id)
        """,
    ),
    # A coupon may list 14,000 products, so its pages are short.
    "coupons": Resource(
        "coupon_upc, campaign_id",
        """
        select coupon_upc, campaign_id, entered_at as updated_at,
            list({'product_id': product_id} order by file_row_number) as products
        from coupon_products inner join entered_campaigns using (campaign_id)
        group by all
        """,
        page_size=100,
        max_page_size=200,
    ),
    "coupon_redemptions": Resource(
        "household_id, coupon_upc, campaign_id",
        """
        select household_id, coupon_upc, campaign_id,
            strftime(redemption_date, '%Y-%m-%d') as redeemed_on,
            strftime(redemption_date + interval 30 hour, '%Y-%m-%dT%H:%M:%SZ') as updated_at
        from coupon_redemptions
        """,
    ),
}


@dataclass(frozen=True)
class Rows:
    """A resource's rows: JSON texts in the order of their keys."""

    keys: list[Key]
    texts: list[str]

    def page(self, after: Key, size: int) -> tuple[list[str], Key | None]:
        """Return up to `size` rows after a key, and the last one's key if more follow."""
        start = bisect_right(self.keys, after)
        end = start + size
        return self.texts[start:end], self.keys[end - 1] if end < len(self.keys) else None


def make(file: Path) -> None:
    """Write each resource's rows, as lists of key and text, into one JSON file."""
    with source.connect() as session:
        session.execute(f"create view entered_campaigns as {ENTERED_CAMPAIGNS}")
        coupons = str(source.folder() / "coupons.parquet")
        session.read_parquet(coupons, file_row_number=True).create_view("coupon_products")
        made = {}
        for name, resource in RESOURCES.items():
            order = f"epoch(cast(updated_at as timestamp)), {resource.key}"
            rows = f"select {order}, to_json(item) from ({resource.rows}) as item order by {order}"
            made[name] = session.execute(rows).fetchall()
            report(f"marketing: {len(made[name]):>9,} {name}")
    file.write_text(json.dumps(made))


def app(file: Path, token: str) -> FastAPI:
    """Build the API over what `make` wrote, for whoever bears `token`."""
    api = FastAPI(title="Marketing API", docs_url=None, redoc_url=None)
    allowed = [Depends(bearer_of(token)), Depends(at_most(REQUESTS_PER_SECOND))]

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    for name, rows in json.loads(file.read_text()).items():
        ordered = Rows([tuple(row[:-1]) for row in rows], [row[-1] for row in rows])
        endpoint = _endpoint(RESOURCES[name], ordered)
        api.get(f"/{name}", name=name, dependencies=allowed)(endpoint)
    return api


def _endpoint(resource: Resource, rows: Rows) -> Callable[..., Any]:
    async def list_rows(
        request: Request,
        page_size: Annotated[int, Query(ge=1, le=resource.max_page_size)] = resource.page_size,
        updated_since: datetime | None = None,
        cursor: str | None = None,
    ) -> Response:
        """Rows by `updated_at`, strictly after `updated_since`; follow `next` until it is null."""
        texts, last = rows.page(max(_since(updated_since), _decode(cursor)), page_size)
        following = last and str(request.url.include_query_params(cursor=_encode(last)))
        body = f'{{"data": [{",".join(texts)}], "next": {json.dumps(following)}}}'
        return Response(body, media_type="application/json")

    return list_rows


def _since(moment: datetime | None) -> Key:
    """Return the key after all rows of that moment. A time without a zone is UTC."""
    if moment is None:
        return ()
    utc = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (utc.timestamp(), math.inf)


def _encode(key: Key) -> str:
    return urlsafe_b64encode(json.dumps(key).encode()).decode()


def _decode(cursor: str | None) -> Key:
    if cursor is None:
        return ()
    try:
        return tuple(map(float, json.loads(urlsafe_b64decode(cursor))))
    except (ValueError, TypeError, OverflowError):
        raise HTTPException(422, "cursor: not one this API gave out; follow `next`") from None
