-- One row per position of a van.
-- A view: as fresh as the last message that is in the lake.
{{ config(materialized='view') }}

with

positions as (
    select * from {{ ref('int_van_positions_deduped') }}
),

final as (
    select
        van_id,
        van_sequence,
        order_id,
        latitude,
        longitude,
        speed_kmh,
        heading,
        occurred_at,
        loaded_at
    from positions
)

select * from final
