-- One row per payment and status that it took.
-- A view: as fresh as the last message that is in the lake.
{{ config(materialized='view') }}

with

payment_events as (
    select * from {{ ref('int_payment_events_deduped') }}
),

final as (
    select
        payment_id,
        order_id,
        household_id,
        payment_status,
        payment_method,
        payment_reason,
        currency,
        payment_amount,
        payment_latitude,
        payment_longitude,
        occurred_at,
        loaded_at
    from payment_events
)

select * from final
