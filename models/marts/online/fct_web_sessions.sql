-- One row per session: clicks of one visitor with no more than half an hour from one
-- to the next. A click that comes late may open a session earlier or join two of them:
-- a row without clicks takes a session that is no more out of the table.
{{ config(
    materialized='incremental',
    incremental_strategy='merge',
    unique_key=['session_date', 'session_id'],
    merge_delete_where='click_count = 0',
    partition_by='session_date',
    on_schema_change='fail'
) }}

{% set landed_clicks = ref('stg_web_shop__clicks') %}
{% if is_incremental() %}
    {% set loaded_since = loaded_until(this) %}
    {% set loaded_clicks = landed_clicks ~ ' where loaded_at >= '
        ~ loaded_since %}
    {% set first_occurred_at = happened_since([
        'select min(occurred_at) from ' ~ loaded_clicks
    ]) %}
    -- Sessions that go on at that time may have begun long before.
    {% set first_started_at = happened_since([
        'select ' ~ first_occurred_at,
        'select min(started_at) from ' ~ this ~ ' where ended_at >= '
        ~ first_occurred_at ~ ' - interval 30 minute',
    ]) %}
{% endif %}

with

clicks as (
    select * from {{ ref('int_clicks_deduped') }}
    {% if is_incremental() %}
        where occurred_at >= {{ first_started_at }}
    {% endif %}
),

{% if is_incremental() %}
    clicks_loaded as (
        select
            visitor_id,
            occurred_at
        from {{ landed_clicks }}
        where loaded_at >= {{ loaded_since }}
    ),

    sessions_recent as (
        select * from {{ this }}
        where session_date >= cast({{ first_started_at }} as date)
    ),

    sessions_touched as (
        select distinct sessions_recent.*
        from sessions_recent
        inner join clicks_loaded
            on
                sessions_recent.visitor_id = clicks_loaded.visitor_id
                and clicks_loaded.occurred_at
                >= sessions_recent.started_at - interval 30 minute
                and clicks_loaded.occurred_at
                <= sessions_recent.ended_at + interval 30 minute
    ),

    spans_touched as (
        select
            visitor_id,
            occurred_at as first_at,
            occurred_at as last_at
        from clicks_loaded
        union all
        select
            visitor_id,
            started_at as first_at,
            ended_at as last_at
        from sessions_touched
    ),

    -- A session that was not touched lies wholly inside such a span or wholly outside.
    visitors_due as (
        select
            visitor_id,
            min(first_at) as first_at,
            max(last_at) as last_at
        from spans_touched
        group by visitor_id
    ),
{% endif %}

clicks_due as (
    select clicks.*
    from clicks
    {% if is_incremental() %}
        inner join visitors_due
            on
                clicks.visitor_id = visitors_due.visitor_id
                and clicks.occurred_at >= visitors_due.first_at
                and clicks.occurred_at <= visitors_due.last_at
    {% endif %}
),

clicks_compared as (
    select
        *,
        lag(occurred_at) over (
            partition by visitor_id
            order by occurred_at asc, click_id asc
        ) as previous_occurred_at
    from clicks_due
),

clicks_grouped as (
    select
        *,
        sum(
            case
                when occurred_at <= previous_occurred_at + interval 30 minute then 0
                else 1
            end
        ) over (
            partition by visitor_id
            order by occurred_at asc, click_id asc
            rows between unbounded preceding and current row
        ) as session_number
    from clicks_compared
),

clicks_numbered as (
    select
        *,
        row_number() over (
            partition by visitor_id, session_number
            order by occurred_at asc, click_id asc
        ) as click_number
    from clicks_grouped
),

sessions as (
    select
        {{ first_known('click_id', 'click_number') }} as session_id,
        visitor_id,
        max(household_id) as household_id,
        max(order_id) as order_id,
        cast(min(occurred_at) as date) as session_date,
        {{ first_known('device', 'click_number') }} as device,
        max(case when click_number = 1 then referrer end) as referrer,
        {{ first_known('page_type', 'click_number') }} as first_page_type,
        {{ last_known('page_type', 'click_number') }} as last_page_type,
        max(case when page_type = 'basket' then 1 else 0 end) = 1 as has_basket,
        max(case when page_type = 'checkout' then 1 else 0 end) = 1 as has_checkout,
        max(case when page_type = 'confirmation' then 1 else 0 end) = 1 as has_order,
        count(*) as click_count,
        count(distinct product_id) as product_count,
        {{ seconds_between('min(occurred_at)', 'max(occurred_at)') }}
            as duration_seconds,
        min(occurred_at) as started_at,
        max(occurred_at) as ended_at,
        max(loaded_at) as loaded_at
    from clicks_numbered
    group by visitor_id, session_number
),

{% if is_incremental() %}
    sessions_gone as (
        select
            sessions_touched.session_id,
            sessions_touched.visitor_id,
            sessions_touched.household_id,
            sessions_touched.order_id,
            sessions_touched.session_date,
            sessions_touched.device,
            sessions_touched.referrer,
            sessions_touched.first_page_type,
            sessions_touched.last_page_type,
            sessions_touched.has_basket,
            sessions_touched.has_checkout,
            sessions_touched.has_order,
            0 as click_count,
            sessions_touched.product_count,
            sessions_touched.duration_seconds,
            sessions_touched.started_at,
            sessions_touched.ended_at,
            sessions_touched.loaded_at
        from sessions_touched
        left join sessions on sessions_touched.session_id = sessions.session_id
        where sessions.session_id is null
    ),
{% endif %}

final as (
    select * from sessions
    {% if is_incremental() %}
        union all
        select * from sessions_gone
    {% endif %}
)

select * from final
