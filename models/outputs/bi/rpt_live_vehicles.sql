-- One row per van that sent a position in the last day.
{{ config(materialized='view') }}
{% set moment = project_moment('event_spans') %}

with

event_spans as (
    select * from {{ ref('fct_event_spans') }}
    where event_kind = 'van position'
),

positions as (
    select * from {{ ref('fct_van_positions') }}
    where
        occurred_at > {{ moment }} - interval 1 day
        -- A clock that is ahead must not hide where the van is.
        and occurred_at <= {{ moment }} + interval 1 minute
),

-- Of orders that vans of the last day carry.
order_events as (
    select * from {{ ref('fct_order_events') }}
    where occurred_at > {{ moment }} - interval 28 day
),

-- By the van's own count where two positions bear the same time.
positions_ranked as (
    select
        *,
        {{ moment }} as moment,
        row_number() over (
            partition by van_id
            order by occurred_at desc, van_sequence desc
        ) as position_rank
    from positions
),

orders as (
    select
        order_id,
        max(promised_at) as promised_at,
        min(occurred_at) filter (where event_type = 'delivered') as delivered_at
    from order_events
    group by order_id
),

final as (
    select
        positions_ranked.van_id,
        positions_ranked.order_id,
        positions_ranked.order_id is not null
        and orders.delivered_at is null as is_carrying,
        coalesce(
            coalesce(orders.delivered_at, positions_ranked.moment)
            > orders.promised_at,
            false
        ) as is_late,
        positions_ranked.latitude,
        positions_ranked.longitude,
        positions_ranked.heading,
        positions_ranked.speed_kmh,
        greatest(
            round({{ seconds_between(
                'positions_ranked.occurred_at', 'positions_ranked.moment'
            ) }}, 0),
            0
        ) as signal_age_seconds,
        orders.promised_at,
        orders.delivered_at,
        positions_ranked.occurred_at as signal_at
    from positions_ranked
    left join orders on positions_ranked.order_id = orders.order_id
    where positions_ranked.position_rank = 1
)

select * from final
