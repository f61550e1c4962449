"""A social listening service's REST API: each day's ten trending hashtags.

Simulated from real baskets: people are taken to post about what they buy. A product category is
mentioned ten times for each basket of the day that holds it; it trends by how much that is more
than its daily mean of the 28 days before, if that is 200 mentions or more.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Security
from fastapi.security import APIKeyHeader

from demo import source
from demo.rate_limit import at_most
from demo.source import report

REQUESTS_PER_SECOND = 10
PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000

HASHTAGS = """
    with mentions as (
        select cast(transaction_timestamp as date) as day, product_category as topic,
            10 * count(distinct basket_id) as mentions
        from transactions inner join products using (product_id)
        where product_category is not null and product_category != 'COUPON/MISC ITEMS'
        group by all
    ),
    compared as (
        select *, cast(round(sum(mentions) over (
            partition by topic order by day
            range between interval 28 day preceding and interval 1 day preceding
        ) / 28) as bigint) as usual_mentions
        from mentions
    ),
    ranked as (
        select *, row_number() over (
            partition by day order by mentions / usual_mentions desc, topic
        ) as rank
        from compared where usual_mentions >= 200 and day >= date '2017-01-29'
    )
    select strftime(day, '%Y-%m-%d') as day, rank,
        '#' || list_aggregate(list_transform(
            regexp_extract_all(topic, '[A-Z]+'), lambda word: word[1] || lower(word[2:])
        ), 'string_agg', '') as hashtag,
        topic, mentions, usual_mentions
    from ranked where rank <= 10 and day < date '2018-01-01' order by day, rank
"""


def make(file: Path) -> None:
    """Write the rows, in the order of days and ranks, into one JSON file."""
    with source.connect() as session:
        rows = session.execute(f"select to_json(item) from ({HASHTAGS}) as item").fetchall()
    report(f"trends: {len(rows):>12,} hashtags")
    file.write_text(f"[{','.join(text for (text,) in rows)}]")


def app(file: Path, key: str) -> FastAPI:
    """Build the API over what `make` wrote, for whoever sends `key` as X-Api-Key."""
    api = FastAPI(title="Trends API", docs_url=None, redoc_url=None)
    rows = json.loads(file.read_text())
    scheme = APIKeyHeader(name="X-Api-Key", auto_error=False)

    async def allowed(sent: Annotated[str | None, Security(scheme)]) -> None:
        if sent != key:
            raise HTTPException(401, "send the header: X-Api-Key: <key>")

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    limited = [Depends(allowed), Depends(at_most(REQUESTS_PER_SECOND))]

    @api.get("/v1/hashtags", dependencies=limited)
    async def hashtags(
        since: date = date.min,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = PAGE_SIZE,
    ) -> dict[str, Any]:
        """Each day's ten trending hashtags from a day on. Send next_cursor until it is null."""
        found = [row for row in rows if row["day"] >= since.isoformat()]
        start = _decode(cursor)
        end = start + limit
        following = _encode(end) if end < len(found) else None
        return {"results": found[start:end], "meta": {"next_cursor": following}}

    return api


def _encode(position: int) -> str:
    return urlsafe_b64encode(f"from {position}".encode()).decode()


def _decode(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        return int(urlsafe_b64decode(cursor).decode().removeprefix("from "))
    except ValueError:
        raise HTTPException(422, "cursor: not one this API gave out") from None
