-- One row per web order, of its events or of the till.
{{ config(materialized='view') }}

with

event_spans as (
    select * from {{ ref('fct_event_spans') }}
    where event_kind = 'order event'
),

order_events as (
    select * from {{ ref('fct_order_events') }}
),

receipts as (
    select * from {{ ref('fct_web_receipts') }}
),

baskets as (
    select * from {{ ref('fct_baskets') }}
),

receipt_bounds as (
    select max(rung_up_at) as last_rung_up_at
    from receipts
),

events_numbered as (
    select
        *,
        row_number() over (
            partition by order_id
            order by occurred_at asc, order_event_id asc
        ) as event_number
    from order_events
),

orders as (
    select
        order_id,
        {{ last_known('order_amount', 'event_number') }} as order_amount,
        max(case when event_type = 'cancelled' then 1 else 0 end) = 1 as is_cancelled,
        min(occurred_at) as ordered_at
    from events_numbered
    group by order_id
),

-- An order that was rung up in two receipts comes to both.
receipts_summed as (
    select
        receipts.order_id,
        count(*) as receipt_count,
        sum(baskets.sales_amount) as receipt_amount,
        min(receipts.rung_up_at) as rung_up_at
    from receipts
    left join baskets on receipts.basket_id = baskets.basket_id
    group by receipts.order_id
),

orders_matched as (
    select
        coalesce(orders.order_id, receipts_summed.order_id) as order_id,
        orders.order_id is not null as has_events,
        receipts_summed.order_id is not null as has_receipt,
        coalesce(orders.is_cancelled, false) as is_cancelled,
        coalesce(receipts_summed.receipt_count, 0) as receipt_count,
        orders.order_amount,
        receipts_summed.receipt_amount,
        orders.ordered_at,
        receipts_summed.rung_up_at,
        coalesce(orders.ordered_at, receipts_summed.rung_up_at) as first_seen_at
    from orders
    full outer join receipts_summed on orders.order_id = receipts_summed.order_id
),

orders_aged as (
    select
        orders_matched.*,
        greatest(
            round({{ seconds_between(
                'orders_matched.first_seen_at', project_moment('event_spans')
            ) }} / 3600, 2),
            0
        ) as age_hours,
        receipt_bounds.last_rung_up_at
    from orders_matched
    cross join receipt_bounds
),

final as (
    select
        order_id,
        -- Receipts come the night after; until then, and while the tills are behind,
        -- none is lost. Events come within the hour.
        case
            when has_events and has_receipt then 'matched'
            when has_events and is_cancelled then 'cancelled'
            when
                has_events
                and (
                    age_hours <= 36
                    or last_rung_up_at is null
                    or ordered_at > last_rung_up_at
                )
                then 'receipt awaited'
            when has_events then 'receipt lost'
            when age_hours <= 2 then 'events awaited'
            else 'events lost'
        end as reconciliation_status,
        has_events,
        has_receipt,
        is_cancelled,
        receipt_count,
        order_amount,
        cast(receipt_amount as decimal(18, 2)) as receipt_amount,
        cast(receipt_amount - order_amount as decimal(18, 2)) as difference_amount,
        age_hours,
        ordered_at,
        rung_up_at
    from orders_aged
)

select * from final
