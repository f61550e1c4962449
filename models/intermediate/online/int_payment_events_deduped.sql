-- One row per payment and status that it took.
with

payment_events as (
    select * from {{ ref('stg_payments__payment_events') }}
),

payment_events_deduped as (
    {{ first_copies('payment_events', ['payment_id', 'payment_status']) }}
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
    from payment_events_deduped
)

select * from final
