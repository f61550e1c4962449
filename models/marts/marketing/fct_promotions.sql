-- One row per product, store and week in which the product was promoted there.
{{ config(
    materialized='incremental',
    incremental_strategy='insert_overwrite',
    partition_by='retail_week',
    on_schema_change='fail'
) }}

{#- Of twenty million lines, a CTE that is read twice would be written out first. -#}
{% set promotion_lines = ref('stg_catalogue__promotions') %}
{% set lines = 'lines_due' if is_incremental() else promotion_lines %}

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

{% if is_incremental() %}
    weeks_built as (
        select
            retail_week,
            max(loaded_at) as loaded_at
        from {{ this }}
        group by retail_week
    ),

    weeks_loaded as (
        select
            retail_week,
            max(loaded_at) as loaded_at
        from {{ promotion_lines }}
        group by retail_week
    ),

    -- Built before a dimension knew what they name.
    weeks_outdated as (
        select built.retail_week
        from {{ this }} as built
        inner join products on built.product_id = products.product_id
        where built.product_key = {{ unknown_key() }}
        union
        select built.retail_week
        from {{ this }} as built
        inner join stores on built.store_id = stores.store_id
        where built.store_key = {{ unknown_key() }}
    ),

    -- A week is built as a whole.
    weeks_due as (
        select loaded.retail_week
        from weeks_loaded as loaded
        left join weeks_built as built on loaded.retail_week = built.retail_week
        left join weeks_outdated as outdated
            on loaded.retail_week = outdated.retail_week
        where
            built.retail_week is null
            or loaded.loaded_at > built.loaded_at
            or outdated.retail_week is not null
    ),

    lines_due as (
        select lines.*
        from {{ promotion_lines }} as lines
        where lines.retail_week in (select weeks_due.retail_week from weeks_due)
    ),
{% endif %}

products_with_repeats as (
    select distinct
        retail_week,
        product_id
    from (
        {{ members_counted(lines, ['retail_week', 'product_id'], 'store_id') }}
    ) as stores_counted
    where row_count > member_count
),

lines_with_repeats as (
    select
        lines.*,
        max(lines.loaded_at) over (
            partition by lines.retail_week, lines.product_id, lines.store_id
        ) as last_loaded_at
    from {{ lines }} as lines
    inner join products_with_repeats as repeated
        on
            lines.retail_week = repeated.retail_week
            and lines.product_id = repeated.product_id
),

-- Lines that repeat each tell a part of one promotion: one says 0, nowhere, where the
-- other names the place, and 0 sorts before all codes. A later load replaces a former.
repeats_merged as (
    select
        retail_week,
        product_id,
        store_id,
        max(display_location) as display_location,
        max(mailer_location) as mailer_location,
        max(loaded_at) as loaded_at
    from lines_with_repeats
    where loaded_at = last_loaded_at
    group by
        retail_week,
        product_id,
        store_id
),

lines_without_repeats as (
    select lines.*
    from {{ lines }} as lines
    left join products_with_repeats as repeated
        on
            lines.retail_week = repeated.retail_week
            and lines.product_id = repeated.product_id
    where repeated.product_id is null
),

-- Nothing matches: it is a union all, in the form that DuckDB streams (issue 22215).
promotions as (
    select
        coalesce(lines.retail_week, merged.retail_week) as retail_week,
        coalesce(lines.product_id, merged.product_id) as product_id,
        coalesce(lines.store_id, merged.store_id) as store_id,
        coalesce(lines.display_location, merged.display_location, '0')
            as display_location,
        coalesce(lines.mailer_location, merged.mailer_location, '0')
            as mailer_location,
        coalesce(lines.loaded_at, merged.loaded_at) as loaded_at
    from lines_without_repeats as lines
    full outer join repeats_merged as merged
        on
            lines.retail_week = merged.retail_week
            and lines.product_id = merged.product_id
            and lines.store_id = merged.store_id
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
