-- One row per web order that a van has carried or set out with.
{{ config(
    materialized='incremental',
    incremental_strategy='merge',
    unique_key='order_id',
    partition_by='delivery_date',
    on_schema_change='fail'
) }}

{% set landed_order_events = ref('stg_web_shop__order_events') %}
{% set landed_positions = ref('stg_vans__positions') %}
{% if is_incremental() %}
    {% set events_since = loaded_until(this, 'order_events_loaded_at') %}
    {% set positions_since = loaded_until(this, 'positions_loaded_at') %}
    {% set loaded_events = landed_order_events
        ~ " where event_type in ('dispatched', 'delivered') and loaded_at >= "
        ~ events_since %}
    {% set loaded_positions = landed_positions
        ~ ' where order_id is not null and loaded_at >= '
        ~ positions_since %}
    {% set first_occurred_at = happened_since([
        'select min(occurred_at) from ' ~ loaded_events,
        'select min(occurred_at) from ' ~ loaded_positions,
        'select min(started_at) from ' ~ this
        ~ ' where order_id in (select order_id from ' ~ loaded_events
        ~ ' union all select order_id from ' ~ loaded_positions ~ ')',
    ]) %}
{% endif %}

with

order_events as (
    select * from {{ ref('int_order_events_deduped') }}
    where
        event_type in ('dispatched', 'delivered')
        {% if is_incremental() %}
            and occurred_at >= {{ first_occurred_at }}
        {% endif %}
),

positions as (
    select * from {{ ref('int_van_positions_deduped') }}
    where
        order_id is not null
        {% if is_incremental() %}
            and occurred_at >= {{ first_occurred_at }}
        {% endif %}
),

{% if is_incremental() %}
    orders_due as (
        select order_id
        from {{ landed_order_events }}
        where
            event_type in ('dispatched', 'delivered')
            and loaded_at >= {{ events_since }}
        union
        select order_id
        from {{ landed_positions }}
        where
            order_id is not null
            and loaded_at >= {{ positions_since }}
    ),
{% endif %}

events_due as (
    select
        order_events.*,
        row_number() over (
            partition by order_events.order_id
            order by
                order_events.occurred_at asc,
                order_events.event_type desc,
                order_events.order_event_id asc
        ) as event_number
    from order_events
    {% if is_incremental() %}
        inner join orders_due on order_events.order_id = orders_due.order_id
    {% endif %}
),

positions_due as (
    select
        positions.*,
        row_number() over (
            partition by positions.order_id
            order by
                positions.occurred_at asc,
                positions.van_id asc,
                positions.van_sequence asc
        ) as position_number,
        lag(positions.latitude) over (
            partition by positions.order_id, positions.van_id
            order by positions.occurred_at asc, positions.van_sequence asc
        ) as previous_latitude,
        lag(positions.longitude) over (
            partition by positions.order_id, positions.van_id
            order by positions.occurred_at asc, positions.van_sequence asc
        ) as previous_longitude
    from positions
    {% if is_incremental() %}
        inner join orders_due on positions.order_id = orders_due.order_id
    {% endif %}
),

orders as (
    select
        order_id,
        {{ last_known('van_id', 'event_number') }} as van_id,
        {{ last_known('household_id', 'event_number') }} as household_id,
        {{ last_known('store_id', 'event_number') }} as store_id,
        {{ last_known('promised_at', 'event_number') }} as promised_at,
        min(occurred_at) filter (where event_type = 'dispatched') as dispatched_at,
        min(occurred_at) filter (where event_type = 'delivered') as delivered_at,
        min(occurred_at) as started_at,
        max(loaded_at) as loaded_at
    from events_due
    group by order_id
),

drives as (
    select
        order_id,
        {{ last_known('van_id', 'position_number') }} as van_id,
        count(*) as position_count,
        sum({{ kilometres_between(
            'previous_latitude', 'previous_longitude', 'latitude', 'longitude'
        ) }}) as distance_km,
        min(occurred_at) as started_at,
        max(loaded_at) as loaded_at
    from positions_due
    group by order_id
),

deliveries as (
    select
        coalesce(orders.order_id, drives.order_id) as order_id,
        coalesce(orders.van_id, drives.van_id) as van_id,
        orders.household_id,
        orders.store_id,
        coalesce(drives.position_count, 0) as position_count,
        coalesce(drives.distance_km, 0) as distance_km,
        orders.promised_at,
        orders.dispatched_at,
        orders.delivered_at,
        -- `least` of one null is the other on every engine.
        least(orders.started_at, drives.started_at) as started_at,
        orders.loaded_at as order_events_loaded_at,
        drives.loaded_at as positions_loaded_at
    from orders
    full outer join drives on orders.order_id = drives.order_id
),

final as (
    select
        order_id,
        van_id,
        household_id,
        store_id,
        cast(started_at as date) as delivery_date,
        delivered_at is not null as is_delivered,
        delivered_at > promised_at as is_late,
        round({{ seconds_between('promised_at', 'delivered_at') }} / 60, 3)
            as minutes_late,
        round({{ seconds_between('dispatched_at', 'delivered_at') }} / 60, 3)
            as minutes_on_the_way,
        cast(distance_km as decimal(12, 3)) as distance_km,
        position_count,
        promised_at,
        dispatched_at,
        delivered_at,
        started_at,
        order_events_loaded_at,
        positions_loaded_at
    from deliveries
)

select * from final
