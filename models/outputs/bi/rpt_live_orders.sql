-- One row per web order that something happened to within the last four weeks.
{{ config(materialized='view') }}
{% set moment = project_moment('event_spans') %}

with

event_spans as (
    select * from {{ ref('fct_event_spans') }}
    where event_kind = 'order event'
),

order_events as (
    select * from {{ ref('fct_order_events') }}
    where occurred_at > {{ moment }} - interval 28 day
),

orders as (
    select
        order_id,
        max(
            case when event_type in ('delivered', 'cancelled') then 1 else 0 end
        ) = 1 as is_over,
        max(promised_at) as promised_at,
        max(delivery_latitude) as delivery_latitude,
        max(delivery_longitude) as delivery_longitude
    from order_events
    group by order_id
),

final as (
    select
        order_id,
        is_over,
        coalesce(
            not is_over
            and promised_at < {{ moment }}
            and promised_at > {{ moment }} - interval 1 day,
            false
        ) as is_late,
        promised_at,
        delivery_latitude,
        delivery_longitude
    from orders
)

select * from final
