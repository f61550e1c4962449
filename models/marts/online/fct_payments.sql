-- One row per payment, as its latest status left it.
{{ config(
    materialized='incremental',
    incremental_strategy='merge',
    unique_key='payment_id',
    partition_by='paid_date',
    on_schema_change='fail'
) }}

{% set landed_payment_events = ref('stg_payments__payment_events') %}
{% if is_incremental() %}
    {% set loaded_since = loaded_until(this) %}
    {% set loaded_events = landed_payment_events ~ ' where loaded_at >= '
        ~ loaded_since %}
    {% set first_occurred_at = happened_since([
        'select min(occurred_at) from ' ~ loaded_events,
        'select min(paid_at) from ' ~ this
        ~ ' where payment_id in (select payment_id from ' ~ loaded_events ~ ')',
    ]) %}
{% endif %}

with

payment_events as (
    select * from {{ ref('int_payment_events_deduped') }}
    {% if is_incremental() %}
        where occurred_at >= {{ first_occurred_at }}
    {% endif %}
),

{% if is_incremental() %}
    payments_due as (
        select distinct payment_id
        from {{ landed_payment_events }}
        where loaded_at >= {{ loaded_since }}
    ),
{% endif %}

events_due as (
    select payment_events.*
    from payment_events
    {% if is_incremental() %}
        inner join payments_due
            on payment_events.payment_id = payments_due.payment_id
    {% endif %}
),

-- Nothing is refunded before it is paid, even where both bear the same time.
events_numbered as (
    select
        *,
        row_number() over (
            partition by payment_id
            order by
                occurred_at asc,
                case when payment_status = 'refunded' then 1 else 0 end asc,
                payment_status asc
        ) as event_number
    from events_due
),

final as (
    select
        payment_id,
        {{ last_known('order_id', 'event_number') }} as order_id,
        {{ last_known('household_id', 'event_number') }} as household_id,
        cast(min(occurred_at) as date) as paid_date,
        {{ last_known('payment_status', 'event_number') }} as payment_status,
        {{ last_known('payment_method', 'event_number') }} as payment_method,
        {{ last_known('payment_reason', 'event_number') }} as payment_reason,
        {{ last_known('currency', 'event_number') }} as currency,
        max(case when payment_status = 'declined' then 1 else 0 end) = 1
            as is_declined,
        max(case when payment_status = 'refunded' then 1 else 0 end) = 1
            as is_refunded,
        {{ first_known('payment_amount', 'event_number') }} as payment_amount,
        {{ first_known('payment_latitude', 'event_number') }} as payment_latitude,
        {{ first_known('payment_longitude', 'event_number') }} as payment_longitude,
        min(occurred_at) as paid_at,
        min(occurred_at) filter (where payment_status = 'refunded') as refunded_at,
        max(loaded_at) as loaded_at
    from events_numbered
    group by payment_id
)

select * from final
