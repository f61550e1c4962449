-- One row per kind of event. Copies of an event bear the same time: this need not
-- tell them apart, which is what costs.
{{ config(materialized='view') }}

with

order_events as (
    select * from {{ ref('stg_web_shop__order_events') }}
),

payment_events as (
    select * from {{ ref('stg_payments__payment_events') }}
),

positions as (
    select * from {{ ref('stg_vans__positions') }}
),

final as (
    select
        'order event' as event_kind,
        min(occurred_at) as first_at,
        max(occurred_at) as last_at
    from order_events
    union all
    select
        'payment attempt' as event_kind,
        min(occurred_at) as first_at,
        max(occurred_at) as last_at
    from payment_events
    where payment_status in ('authorized', 'declined')
    union all
    select
        'van position' as event_kind,
        min(occurred_at) as first_at,
        max(occurred_at) as last_at
    from positions
)

select * from final
