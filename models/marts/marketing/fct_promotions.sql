-- One row per product, store and week in which the product was promoted there.
{{ config(
    materialized='incremental',
    incremental_strategy='insert_overwrite',
    partition_by='retail_week',
    on_schema_change='fail'
) }}

{#- Twenty million rows: the lines are read where they are needed instead of through one
    import CTE, which DuckDB would write out before anything reads it. -#}
{% set lines = ref('stg_catalogue__promotions') %}

with

products as (
    select * from {{ ref('dim_product') }}
),

stores as (
    select * from {{ ref('dim_store') }}
),

display_locations as (
    select * from {{ ref('display_locations') }}
),

mailer_locations as (
    select * from {{ ref('mailer_locations') }}
),

weeks_delivered as (
    select
        retail_week,
        min(loaded_at) as first_loaded_at,
        max(loaded_at) as loaded_at
    from {{ lines }}
    group by retail_week
),

{% if is_incremental() %}
    weeks_built as (
        select
            retail_week,
            max(loaded_at) as loaded_at
        from {{ this }}
        group by retail_week
    ),

    -- Built before a dimension learnt of what they name.
    weeks_outdated as (
        select distinct built.retail_week
        from {{ this }} as built
        left join products on built.product_id = products.product_id
        left join stores on built.store_id = stores.store_id
        where
            built.product_key != coalesce(products.product_key, {{ unknown_key() }})
            or built.store_key != coalesce(stores.store_key, {{ unknown_key() }})
    ),
{% endif %}

-- A week is built as a whole.
weeks_due as (
    select
        delivered.retail_week,
        delivered.first_loaded_at,
        delivered.loaded_at
    from weeks_delivered as delivered
    {% if is_incremental() %}
        left join weeks_built as built on delivered.retail_week = built.retail_week
        left join weeks_outdated as outdated
            on delivered.retail_week = outdated.retail_week
        where
            built.retail_week is null
            or delivered.loaded_at > built.loaded_at
            or outdated.retail_week is not null
    {% endif %}
),

-- Only of weeks that came in several loads, mostly none.
lines_loaded_last as (
    select
        lines.retail_week,
        lines.product_id,
        lines.store_id,
        max(lines.loaded_at) as loaded_at
    from {{ lines }} as lines
    inner join weeks_due on lines.retail_week = weeks_due.retail_week
    where weeks_due.first_loaded_at < weeks_due.loaded_at
    group by
        lines.retail_week,
        lines.product_id,
        lines.store_id
),

-- Lines that repeat tell of one promotion each a part: one says 0, nowhere, where the
-- other names the place. 0 sorts before all other codes.
promotions as (
    select
        lines.retail_week,
        lines.product_id,
        lines.store_id,
        coalesce(max(lines.display_location), '0') as display_location,
        coalesce(max(lines.mailer_location), '0') as mailer_location,
        max(lines.loaded_at) as loaded_at
    from {{ lines }} as lines
    inner join weeks_due on lines.retail_week = weeks_due.retail_week
    left join lines_loaded_last as last_lines
        on
            lines.retail_week = last_lines.retail_week
            and lines.product_id = last_lines.product_id
            and lines.store_id = last_lines.store_id
    where last_lines.loaded_at is null or lines.loaded_at = last_lines.loaded_at
    group by
        lines.retail_week,
        lines.product_id,
        lines.store_id
),

final as (
    select
        coalesce(products.product_key, {{ unknown_key() }}) as product_key,
        coalesce(stores.store_key, {{ unknown_key() }}) as store_key,
        promotions.retail_week,
        promotions.product_id,
        promotions.store_id,
        promotions.display_location,
        display_locations.display_location_name,
        promotions.mailer_location,
        mailer_locations.mailer_location_name,
        promotions.display_location != '0' as is_on_display,
        promotions.mailer_location != '0' as is_in_mailer,
        promotions.loaded_at
    from promotions
    left join products on promotions.product_id = products.product_id
    left join stores on promotions.store_id = stores.store_id
    left join display_locations
        on promotions.display_location = display_locations.display_location
    left join mailer_locations
        on promotions.mailer_location = mailer_locations.mailer_location
)

select * from final
