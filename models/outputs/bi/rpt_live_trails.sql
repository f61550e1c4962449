-- One row per position of the last quarter of an hour.
{{ config(materialized='view') }}
{% set moment = project_moment('event_spans') %}

with

event_spans as (
    select * from {{ ref('fct_event_spans') }}
    where event_kind = 'van position'
),

positions as (
    select * from {{ ref('fct_van_positions') }}
    where occurred_at > {{ moment }} - interval 15 minute
),

final as (
    select
        van_id,
        van_sequence,
        latitude,
        longitude,
        occurred_at
    from positions
)

select * from final
