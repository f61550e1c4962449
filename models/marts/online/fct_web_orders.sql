-- One row per web order, as its latest event left it.
{{ config(
    materialized='incremental',
    incremental_strategy='merge',
    unique_key='order_id',
    partition_by='ordered_date',
    on_schema_change='fail'
) }}

{% set landed_order_events = ref('stg_web_shop__order_events') %}
{% if is_incremental() %}
    {% set loaded_since = loaded_until(this) %}
    {% set loaded_events = landed_order_events ~ ' where loaded_at >= '
        ~ loaded_since %}
    {% set first_occurred_at = happened_since([
        'select min(occurred_at) from ' ~ loaded_events,
        'select min(first_event_at) from ' ~ this
        ~ ' where order_id in (select order_id from ' ~ loaded_events ~ ')',
    ]) %}
{% endif %}

with

order_events as (
    select * from {{ ref('int_order_events_deduped') }}
    {% if is_incremental() %}
        where occurred_at >= {{ first_occurred_at }}
    {% endif %}
),

{% if is_incremental() %}
    orders_due as (
        select distinct order_id
        from {{ landed_order_events }}
        where loaded_at >= {{ loaded_since }}
    ),
{% endif %}

events_due as (
    select
        order_events.*,
        case order_events.event_type
            when 'placed' then 1
            when 'picked' then 2
            when 'dispatched' then 3
            when 'delivered' then 4
            else 5
        end as step_number
    from order_events
    {% if is_incremental() %}
        inner join orders_due on order_events.order_id = orders_due.order_id
    {% endif %}
),

-- Of two events in one moment the later step comes last.
events_numbered as (
    select
        *,
        row_number() over (
            partition by order_id
            order by occurred_at asc, step_number asc, order_event_id asc
        ) as event_number
    from events_due
),

final as (
    select
        order_id,
        {{ last_known('household_id', 'event_number') }} as household_id,
        {{ last_known('store_id', 'event_number') }} as store_id,
        {{ last_known('van_id', 'event_number') }} as van_id,
        cast(min(occurred_at) as date) as ordered_date,
        {{ last_known('event_type', 'event_number') }} as order_status,
        {{ last_known('event_type', 'event_number') }}
        not in ('delivered', 'cancelled') as is_open,
        {{ last_known('item_count', 'event_number') }} as item_count,
        {{ last_known('order_amount', 'event_number') }} as order_amount,
        {{ last_known('delivery_latitude', 'event_number') }} as delivery_latitude,
        {{ last_known('delivery_longitude', 'event_number') }} as delivery_longitude,
        {{ last_known('promised_at', 'event_number') }} as promised_at,
        {% for step in ['placed', 'picked', 'dispatched', 'delivered', 'cancelled'] -%}
            min(occurred_at) filter (where event_type = '{{ step }}') as {{ step }}_at,
        {% endfor -%}
        min(occurred_at) as first_event_at,
        max(loaded_at) as loaded_at
    from events_numbered
    group by order_id
)

select * from final
