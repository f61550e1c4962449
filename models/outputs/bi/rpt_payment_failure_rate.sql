-- One row per quarter of an hour of the four weeks up to now, those without a payment
-- included. The rate does not add up: add attempts and declines, then divide.
{{ config(materialized='view') }}
{% set moment = project_moment('event_spans') %}
{% set first_at = 'greatest(first_at, ' ~ moment ~ ' - interval 28 day)' %}

with

event_spans as (
    select * from {{ ref('fct_event_spans') }}
    where event_kind = 'payment attempt'
),

payment_events as (
    select * from {{ ref('fct_payment_events') }}
    where
        payment_status in ('authorized', 'declined')
        and occurred_at >= {{ time_floor(moment ~ ' - interval 28 day', 15) }}
),

quarters_bounded as (
    select
        {{ time_floor(first_at, 15) }} as first_quarter_at,
        {{ time_floor(moment, 15) }} as last_quarter_at
    from event_spans
    where first_at <= {{ moment }}
),

quarters as (
    select
        {{ times_between('first_quarter_at', 'last_quarter_at', 15) }}
            as quarter_start_at
    from quarters_bounded
),

quarter_payments as (
    select
        {{ time_floor('occurred_at', 15) }} as quarter_start_at,
        count(*) as attempt_count,
        count(*) filter (where payment_status = 'declined') as declined_count,
        sum(payment_amount) filter (
            where payment_status = 'declined'
        ) as declined_amount
    from payment_events
    group by 1
),

final as (
    select
        quarters.quarter_start_at,
        quarters.quarter_start_at < quarters_bounded.last_quarter_at as is_over,
        coalesce(quarter_payments.attempt_count, 0) as attempt_count,
        coalesce(quarter_payments.declined_count, 0) as declined_count,
        cast(
            coalesce(quarter_payments.declined_amount, 0) as decimal(18, 2)
        ) as declined_amount,
        round(
            cast(quarter_payments.declined_count as double)
            / quarter_payments.attempt_count,
            4
        ) as failure_rate
    from quarters
    cross join quarters_bounded
    left join quarter_payments
        on quarters.quarter_start_at = quarter_payments.quarter_start_at
)

select * from final
