"""What the streams carry: one Parquet file a topic, a row a message in the order of sending.

`event` is what happened; `value` is what is sent of it. They differ where `fault` says how the
message is bad. Of two messages with the same key the later one says `is_duplicate`. Nine of ten
events are sent within three seconds, so that neighbours change places; one in fifty `is_late`.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb

from demo import source
from demo.source import report
from demo.streams import orders

ISO = "'%Y-%m-%dT%H:%M:%S.%gZ'"
FAULTS = ("broken JSON", "text for a number", "no key")
PRODUCTS = 5
"""So many of a basket's products are looked at."""

MACROS = f"""
    create macro iso(moment) as strftime(moment, {ISO});
    create macro text_id(letter, id) as letter || left(md5(concat(letter, id)), 16);
"""
# A session looks at departments and products, then may see its basket, checkout, confirmation:
# `depth` 0 to 3. Its end is when it is placed; each step comes some seconds before the next.
VIEWS = {
    "looked_at": f"""
        select basket_id, product_id, department
        from (select distinct basket_id, product_id from transactions)
        inner join last_week using (basket_id) left join products using (product_id)
        qualify row_number() over (
            partition by basket_id order by dice('look', concat(basket_id, product_id))
        ) <= {PRODUCTS}
    """,
    "sessions": """
        select order_id as basket_id, household_id, household_id as known_as, 3 as depth,
            placed_at + seconds(dice('confirmed', order_id)) as ended_at
        from orders
        union all
        select basket_id, household_id, case when dice('known', basket_id) < 0.45 then household_id
            end, cast(floor(3 * pow(dice('depth', basket_id), 3)) as integer),
            sold_at - seconds(3600 * dice('browsed', basket_id))
        from last_week anti join web_baskets on basket_id = order_id
        where dice('browses', basket_id) < 0.4
    """,
    "steps": """
        select basket_id, 0 as part, null as department, null as product_id, 'home' as type
        from sessions
        union all
        select distinct basket_id, 1, coalesce(department, ''), null, 'department'
        from sessions inner join looked_at using (basket_id)
        union all
        select basket_id, 1, coalesce(department, ''), product_id, 'product'
        from sessions inner join looked_at using (basket_id)
        union all
        select basket_id, 1 + step, null, null, ['basket', 'checkout', 'confirmation'][step]
        from sessions inner join range(1, 4) as later (step) on step <= depth
    """,
    "clicks": """
        select text_id('c', concat(basket_id, '|', step)) as id, text_id('v', household_id) as key,
            ended_at - seconds(coalesce(sum(4 + 40 * dice('gap', id)) over (
                partition by basket_id order by step desc
                rows between unbounded preceding and 1 preceding
            ), 0)) as occurred_at,
            {
                'event_id': id, 'visitor_id': key, 'household_id': known_as,
                'page': {
                    'type': type, 'product_id': product_id, 'department': nullif(department, '')
                },
                'order_id': case when type = 'confirmation' then basket_id end,
                'referrer': case when step = 1 then [
                    'https://search.example/', 'https://news.example/grocer', null
                ][1 + household_id % 3] end,
                'device': ['phone', 'desktop', 'tablet', 'phone'][1 + household_id % 4],
                'occurred_at': iso(occurred_at)
            } as event
        from (
            select *, row_number() over (
                partition by basket_id order by part, department, product_id nulls first
            ) as step from steps
        )
        inner join sessions using (basket_id)
    """,
    "order_steps": """
        select order_id, 'placed' as event_type, placed_at as occurred_at, null as van from orders
        union all select order_id, 'picked', picked_at, null from orders
        union all select order_id, 'cancelled', cancelled_at, null from orders where is_cancelled
        union all select order_id, 'dispatched', dispatched_at, van_id from routes
        union all
        select order_id, 'delivered', dispatched_at + seconds(10 * (ticks + 3)), van_id from routes
    """,
    "order_events": """
        select text_id('o', concat(order_id, event_type)) as id, cast(order_id as varchar) as key,
            occurred_at, {
                'event_id': id, 'order_id': order_id, 'household_id': household_id,
                'store_id': store_id, 'event_type': event_type, 'amount': amount,
                'item_count': item_count, 'promised_at': iso(promised_at),
                'delivery': {'latitude': latitude, 'longitude': longitude},
                'van_id': van, 'occurred_at': iso(occurred_at)
            } as event
        from order_steps inner join orders using (order_id)
    """,
    # One order in sixteen is declined at first. Of four orders each, the payer is far away, tries
    # ten times in a minute, or pays for an unusual amount beside the order, which is refunded.
    "payers": """
        select *, case when not is_cancelled then row_number() over (
            partition by is_cancelled order by dice('fraud', order_id)
        ) end as suspicion, dice('declined', order_id) < 0.0625 as is_declined
        from orders
    """,
    "payment_steps": """
        select order_id, 1 as attempt, 'declined' as status, placed_at - seconds(90) as occurred_at,
            amount, 'insufficient_funds' as reason from payers where is_declined
        union all
        select order_id, 10 + attempt, 'declined', placed_at - seconds(60 - 6 * attempt),
            cast(amount + 0.01 * attempt as decimal(12,2)), 'wrong_code'
        from payers, range(9) as attempts (attempt) where suspicion between 5 and 8
        union all
        select order_id, 2, 'authorized', placed_at, amount, null from payers
        union all
        select order_id, 3, 'authorized', placed_at + seconds(200), cast(15 * amount + 400
            as decimal(12,2)), null from payers where suspicion between 9 and 12
        union all
        select order_id, 3, 'refunded', placed_at + seconds(7500), cast(15 * amount + 400
            as decimal(12,2)), 'disputed' from payers where suspicion between 9 and 12
        union all
        select order_id, 2, 'refunded', cancelled_at + seconds(60 + 3000 * dice('back', order_id)),
            amount, 'order_cancelled' from payers where is_cancelled
    """,
    "payments": """
        select text_id('p', concat(order_id, '|', attempt)) as payment_id,
            payment_id || status as id, cast(household_id as varchar) as key, occurred_at, {
                'payment_id': payment_id, 'order_id': order_id, 'household_id': household_id,
                'amount': step.amount, 'currency': 'USD',
                'method': ['card', 'card', 'card', 'wallet', 'voucher'][1 + household_id % 5],
                'status': status, 'reason': reason,
                'place': {
                    'latitude': round(latitude + case when suspicion <= 4 then 12.5
                        else 0.01 * (dice('payer north', order_id) - 0.5) end, 5),
                    'longitude': round(longitude + case when suspicion <= 4 then -31
                        else 0.01 * (dice('payer east', order_id) - 0.5) end, 5)
                },
                'occurred_at': iso(occurred_at)
            } as event
        from payment_steps as step inner join payers using (order_id)
    """,
    # Households join before their first order; others join and are not seen again.
    "joined": """
        select household_id, city, concat('household-', household_id) as name,
            min(placed_at) - seconds(60 * (15 + 600 * dice('joined', household_id))) as occurred_at
        from web_baskets inner join orders using (order_id, household_id, city)
        group by household_id, city
        union all
        select null, city, concat('visitor-', basket_id), sold_at - interval 20 minute
        from last_week inner join homes using (household_id)
        where dice('joins', basket_id) < 0.08
    """,
    "sign_ups": """
        select text_id('s', name) as id, city as key, occurred_at, {
                'sign_up_id': id, 'household_id': household_id, 'email': name || '@example.com',
                'city': city,
                'channel': ['web', 'app', 'referral', 'flyer', 'web'][
                    1 + cast(floor(5 * dice('channel', name)) as integer)],
                'occurred_at': iso(occurred_at)
            } as event
        from joined
    """,
    # Two ticks at the store, out, a minute at the door, and back without an order.
    "ticks": """
        select *, dispatched_at + seconds(10 * tick) as occurred_at,
            least(greatest(least(tick, 2 * ticks + 6 - tick), 0), ticks) as driven,
            case driven when 0 then 0.0 when ticks then 1.0
                else (driven + 0.9 * sin(0.8 * driven) / 0.8) / ticks end as uneven,
            least(greatest(uneven, 0), 1) * (east_km + north_km) as km,
            turn * east_km as first_km,
            case when east_km = 0 then 0 else (
                least(km, first_km) + greatest(km - first_km - north_km, 0)) / east_km end as east,
            case when north_km = 0 then 0
                else greatest(least(km - first_km, north_km), 0) / north_km end as north,
            case when tick <= ticks + 3 then order_id end as carried
        from routes inner join range(-2, 200) as clock (tick) on tick <= 2 * ticks + 6
    """,
    "moves": """
        select *, from_latitude + north * (to_latitude - from_latitude) as latitude,
            from_longitude + east * (to_longitude - from_longitude) as longitude,
            km_north(latitude - lag(latitude, 1, latitude) over trip) as moved_north,
            km_east(longitude - lag(longitude, 1, longitude) over trip, latitude) as moved_east
        from ticks window trip as (partition by order_id order by tick)
    """,
    "positions": """
        select row_number() over (partition by van_id order by occurred_at) as sequence,
            concat(van_id, '|', sequence) as id, van_id as key, occurred_at, {
                'van_id': van_id, 'sequence': sequence,
                'latitude': round(latitude + 0.00004 * (dice('n', occurred_at) - 0.5), 6),
                'longitude': round(longitude + 0.00004 * (dice('e', occurred_at) - 0.5), 6),
                'speed_kmh': round(360 * sqrt(pow(moved_north, 2) + pow(moved_east, 2)), 1),
                'heading': cast(floor(
                    (degrees(atan2(moved_east, moved_north)) + 360) % 360) as bigint),
                'order_id': carried, 'occurred_at': iso(occurred_at)
            } as event
        from moves
    """,
}


@dataclass(frozen=True)
class Topic:
    view: str
    number: str
    """A number in its events that bad messages spell as a text."""
    key: str
    """What bad messages lack."""


TOPICS = {
    "web.clicks": Topic("clicks", '{"page": {"product_id": "none"}}', "event_id"),
    "web.orders": Topic("order_events", '{"amount": "free"}', "event_id"),
    "payments": Topic("payments", '{"amount": "twelve"}', "payment_id"),
    "sign_ups": Topic("sign_ups", '{"household_id": "unknown"}', "sign_up_id"),
    "vans": Topic("positions", '{"latitude": "north"}', "van_id"),
}
# Whether an event is bad, late or sent twice goes by its place in an order like a shuffle's, so
# that the shares are exact and a small topic has its bad message too.
SENT = """
    with shuffled as (
        select *, row_number() over (order by dice('bad', id), id) as for_bad,
            row_number() over (order by dice('late', id), id) as for_late,
            row_number() over (order by dice('twice', id), id) as for_twice
        from {view}
    ),
    judged as (
        select *, case when for_bad % 500 = 1 then {faults}[1 + (for_bad // 500) % 3] end as fault,
            fault is null and for_late % 50 = 1 as is_late,
            fault is null and for_twice % 100 = 1 as is_twice
        from shuffled
    ),
    sent as (
        select *, false as is_duplicate, occurred_at + seconds(case when is_late
            then 120 + 3480 * dice('delay', id) else 0.1 + 2.9 * dice('delay', id) end) as sent_at
        from judged
        union all by name
        select *, true as is_duplicate,
            occurred_at + seconds(3 + 60 * dice('again', id)
                + case when is_late then 3600 else 0 end) as sent_at
        from judged where is_twice
    )
    select row_number() over (order by sent_at, id, is_duplicate) as number, sent_at, key, case
            fault when 'broken JSON' then left(text, cast(length(text) * 0.7 as integer))
            when 'text for a number' then cast(json_merge_patch(text, $number) as varchar)
            when 'no key' then cast(json_merge_patch(text, $key) as varchar)
            else text end as value,
        event, occurred_at, fault, is_late, is_duplicate
    from (select *, cast(to_json(event) as varchar) as text from sent) order by number
"""


def make(folder: Path) -> None:
    """Write a file for each topic into `folder`."""
    folder.mkdir()
    with source.connect(threads=1) as session:
        orders.create_views(session)
        session.execute(MACROS)
        for name, rows in VIEWS.items():
            session.execute(f"create temp table {name} as {rows}")
        for name, topic in TOPICS.items():
            count = _write(session, topic, folder / f"{name}.parquet")
            report(f"streams: {count:>11,} messages of {name}")


def _write(session: duckdb.DuckDBPyConnection, topic: Topic, file: Path) -> int:
    rows = SENT.format(view=topic.view, faults=list(FAULTS))
    session.execute(
        f"copy ({rows}) to $file (format parquet, compression zstd)",
        {"number": topic.number, "key": f'{{"{topic.key}": null}}', "file": str(file)},
    )
    (count,) = session.fetchall()[0]
    return int(count)
