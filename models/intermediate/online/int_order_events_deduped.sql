-- One row per step of an order.
with

order_events as (
    select * from {{ ref('stg_web_shop__order_events') }}
),

order_events_deduped as (
    {{ first_copies('order_events', ['order_event_id']) }}
),

final as (
    select
        order_event_id,
        order_id,
        household_id,
        store_id,
        van_id,
        event_type,
        item_count,
        order_amount,
        delivery_latitude,
        delivery_longitude,
        promised_at,
        occurred_at,
        loaded_at
    from order_events_deduped
)

select * from final
