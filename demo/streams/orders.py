"""The web shop's orders and the places they go to, as views over the original rows.

One real basket in ten of 2017's last week is taken to have been ordered on the web. Places, times
and what becomes of an order are simulated, always the same way: `dice` gives a number from 0 to 1
for a text, by its MD5, so nothing depends on threads or versions.
"""

import duckdb

MACROS = """
    create macro dice(name, id) as
        cast(md5_number_lower(concat_ws('|', name, id)) % 1000003 as double) / 1000003;
    create macro seconds(number) as to_microseconds(cast(1e6 * number as bigint));
    create macro km_north(degrees) as 111.2 * degrees;
    create macro km_east(degrees, latitude) as 111.2 * cos(radians(latitude)) * degrees;
"""
CITIES = (
    ("Akron", 41.081, -81.519),
    ("Canton", 40.799, -81.378),
    ("Cincinnati", 39.103, -84.512),
    ("Cleveland", 41.499, -81.694),
    ("Columbus", 39.961, -82.999),
    ("Dayton", 39.759, -84.192),
    ("Mansfield", 40.758, -82.515),
    ("Springfield", 39.924, -83.809),
    ("Toledo", 41.653, -83.536),
    ("Youngstown", 41.100, -80.650),
)
_CITY_ROWS = ", ".join(str((number, *city)) for number, city in enumerate(CITIES))
VIEWS = {
    "cities": f"select * from (values {_CITY_ROWS}) as city (number, city, latitude, longitude)",
    # Stores lie within 6 km of their city's centre, homes within 3.3 km of the household's store.
    "places": f"""
        select store_id, city,
            latitude + 0.10 * (dice('north', store_id) - 0.5) as latitude,
            longitude + 0.13 * (dice('east', store_id) - 0.5) as longitude
        from (select distinct store_id from transactions)
        inner join cities on number = store_id % {len(CITIES)}
    """,
    "homes": """
        select household_id, store_id, city,
            round(latitude + km * sin(angle) / 111.2, 5) as latitude,
            round(longitude + km * cos(angle) / km_east(1, latitude), 5) as longitude
        from (
            select household_id, store_id, 0.8 + 2.5 * dice('km', household_id) as km,
                2 * pi() * dice('angle', household_id) as angle
            from transactions group by household_id, store_id
            qualify row_number() over (
                partition by household_id order by count(distinct basket_id) desc, store_id
            ) = 1
        )
        inner join places using (store_id)
    """,
    "last_week": """
        select basket_id, household_id, store_id, transaction_timestamp as sold_at,
            cast(sum(sales_value) as decimal(12,2)) as amount, count(*) as item_count
        from transactions where transaction_timestamp >= '2017-12-25 05:00'
        group by all having amount >= 5
    """,
    # Only baskets of the household's own store: the van sets out there.
    "web_baskets": """
        select basket_id as order_id, household_id, store_id, sold_at, amount, item_count,
            city, latitude, longitude
        from last_week inner join homes using (household_id, store_id)
        where dice('web', basket_id) < 0.2
    """,
    # An order is rung up when it is picked. Three of four promises would be kept by an hour.
    "orders": """
        select *, sold_at - seconds(60 * (25 + 150 * dice('placed', order_id))) as placed_at,
            sold_at + seconds(dice('picked', order_id)) as picked_at,
            dice('cancelled', order_id) < 0.04 as is_cancelled,
            picked_at + seconds(60 * (3 + 17 * dice('cancels', order_id))) as cancelled_at,
            time_bucket(interval 15 minute, picked_at + interval 15 minute)
                + seconds(900 * floor(1 + 4 * dice('promised', order_id))) as promised_at,
            picked_at + seconds(60 * (8 + 32 * dice('dispatched', order_id))) as dispatched_at,
            format('van-{:04d}-{}', store_id, 1 + (row_number() over (
                partition by store_id order by dispatched_at
            ) - 1) % 2) as van_id
        from web_baskets
    """,
    # Vans keep to streets: east or west, once north or south, east or west again. GPS every 10 s.
    "routes": """
        select order_id, van_id, dispatched_at, place.latitude as from_latitude,
            place.longitude as from_longitude, orders.latitude as to_latitude,
            orders.longitude as to_longitude, 0.2 + 0.6 * dice('turn', order_id) as turn,
            abs(km_east(to_longitude - from_longitude, to_latitude)) as east_km,
            abs(km_north(to_latitude - from_latitude)) as north_km,
            cast(ceil(360 * (east_km + north_km) / (26 + 10 * dice('speed', order_id))) as bigint)
                as ticks
        from orders inner join places as place using (store_id) where not is_cancelled
    """,
    # Rung up as the tills did it, but for four orders; five receipts belong to no known order.
    "web_receipts": """
        select order_id as basket_id, order_id, sold_at as rung_up_at,
            sold_at + interval 1 hour as updated_at
        from (select * from orders order by dice('unknown', order_id) offset 4)
        union all
        select basket_id, basket_id, sold_at, sold_at + interval 1 hour
        from (
            select * from last_week where basket_id not in (select order_id from web_baskets)
            order by dice('orphan', basket_id) limit 5
        )
    """,
}


def create_views(session: duckdb.DuckDBPyConnection) -> None:
    """Add macros and views to a session over the original rows."""
    session.execute(MACROS)
    for name, rows in VIEWS.items():
        session.execute(f"create view {name} as {rows}")
