-- Guards the report's zero-filling: each minute follows the one before, and every order
-- of its four weeks is in one.
with

minutes as (
    select
        minute_start_at,
        order_count,
        lag(minute_start_at) over (order by minute_start_at) as previous_start_at
    from {{ ref('rpt_orders_per_minute') }}
),

gaps as (
    select count(*) as gap_count
    from minutes
    where minute_start_at != previous_start_at + interval 1 minute
),

orders as (
    select count(*) as order_count
    from {{ ref('fct_order_events') }}
    where
        event_type = 'placed'
        and occurred_at >= (select min(minutes.minute_start_at) from minutes)
        and occurred_at
        < (select max(minutes.minute_start_at) + interval 1 minute from minutes)
),

reported as (
    select coalesce(sum(order_count), 0) as order_count
    from minutes
)

select
    gaps.gap_count,
    orders.order_count,
    reported.order_count as reported_count
from gaps
cross join orders
cross join reported
where gaps.gap_count > 0 or orders.order_count != reported.order_count
