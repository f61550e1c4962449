-- One row per step of a web order.
-- A view: as fresh as the last message that is in the lake.
{{ config(materialized='view') }}

with

order_events as (
    select * from {{ ref('int_order_events_deduped') }}
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
    from order_events
)

select * from final
