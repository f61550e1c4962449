-- Guards the increments: whatever came late or twice, each mart counts the events that
-- the streams have brought.
with

counts as (
    select
        'clicks' as counted,
        (select count(*) from {{ ref('int_clicks_deduped') }}) as events,
        (select sum(click_count) from {{ ref('fct_web_sessions') }}) as in_mart
    union all
    select
        'orders' as counted,
        (
            select count(distinct order_id)
            from {{ ref('int_order_events_deduped') }}
        ) as events,
        (select count(*) from {{ ref('fct_web_orders') }}) as in_mart
    union all
    select
        'payments' as counted,
        (
            select count(distinct payment_id)
            from {{ ref('int_payment_events_deduped') }}
        ) as events,
        (select count(*) from {{ ref('fct_payments') }}) as in_mart
    union all
    select
        'sign-ups' as counted,
        (select count(*) from {{ ref('int_sign_ups_deduped') }}) as events,
        (select count(*) from {{ ref('fct_sign_ups') }}) as in_mart
    union all
    select
        'positions' as counted,
        (
            select count(*) from {{ ref('int_van_positions_deduped') }}
            where order_id is not null
        ) as events,
        (select sum(position_count) from {{ ref('fct_deliveries') }}) as in_mart
)

select * from counts
where events != coalesce(in_mart, 0)
