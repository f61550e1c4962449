-- One row per minute of the four weeks up to now, minutes without an order included.
{{ config(materialized='view') }}
{% set moment = project_moment('event_spans') %}

with

event_spans as (
    select * from {{ ref('fct_event_spans') }}
    where event_kind = 'order event'
),

order_events as (
    select * from {{ ref('fct_order_events') }}
    where occurred_at >= date_trunc('minute', {{ moment }} - interval 28 day)
),

minutes_bounded as (
    select
        date_trunc(
            'minute', greatest(first_at, {{ moment }} - interval 28 day)
        ) as first_minute_at,
        date_trunc('minute', {{ moment }}) as last_minute_at
    from event_spans
    where first_at <= {{ moment }}
),

minutes as (
    select {{ times_between('first_minute_at', 'last_minute_at') }} as minute_start_at
    from minutes_bounded
),

minute_events as (
    select
        date_trunc('minute', occurred_at) as minute_start_at,
        count(*) filter (where event_type = 'placed') as order_count,
        count(*) filter (where event_type = 'delivered') as delivery_count,
        count(*) filter (where event_type = 'cancelled') as cancellation_count,
        sum(order_amount) filter (where event_type = 'placed') as order_amount
    from order_events
    group by date_trunc('minute', occurred_at)
),

final as (
    select
        minutes.minute_start_at,
        minutes.minute_start_at < minutes_bounded.last_minute_at as is_over,
        coalesce(minute_events.order_count, 0) as order_count,
        coalesce(minute_events.delivery_count, 0) as delivery_count,
        coalesce(minute_events.cancellation_count, 0) as cancellation_count,
        cast(
            coalesce(minute_events.order_amount, 0) as decimal(18, 2)
        ) as order_amount
    from minutes
    cross join minutes_bounded
    left join minute_events
        on minutes.minute_start_at = minute_events.minute_start_at
)

select * from final
