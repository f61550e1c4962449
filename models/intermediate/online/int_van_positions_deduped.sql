-- One row per position of a van.
with

positions as (
    select * from {{ ref('stg_vans__positions') }}
),

positions_deduped as (
    {{ first_copies('positions', ['van_id', 'van_sequence']) }}
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
    from positions_deduped
)

select * from final
