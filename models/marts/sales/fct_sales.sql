-- One row per receipt line.
{{ config(
    materialized='incremental',
    incremental_strategy='merge',
    unique_key=['basket_id', 'line_number'],
    on_schema_change='fail'
) }}

with

items as (
    select * from {{ ref('stg_pos__basket_items') }}
),

baskets as (
    select * from {{ ref('int_baskets_localised') }}
),

products as (
    select * from {{ ref('dim_product') }}
),

stores as (
    select * from {{ ref('dim_store') }}
),

households as (
    select * from {{ ref('dim_household') }}
),

lines as (
    select
        items.basket_id,
        items.line_number,
        items.product_id,
        baskets.store_id,
        baskets.household_id,
        baskets.sold_date,
        baskets.sold_hour,
        baskets.retail_week,
        items.quantity,
        items.sales_amount,
        items.retail_discount_amount,
        items.coupon_discount_amount,
        items.coupon_match_discount_amount,
        baskets.sold_at,
        greatest(items.loaded_at, baskets.loaded_at) as loaded_at
    from items
    inner join baskets on items.basket_id = baskets.basket_id
),

{% if is_incremental() %}
    -- From the last load on, not after it: a line may come after others of its load.
    lines_loaded as (
        select
            lines.basket_id,
            lines.line_number
        from lines
        left join {{ this }} as built
            on
                lines.basket_id = built.basket_id
                and lines.line_number = built.line_number
        where
            lines.loaded_at >= (select max(last.loaded_at) from {{ this }} as last)
            and (built.basket_id is null or lines.loaded_at > built.loaded_at)
    ),

    -- Built before a dimension knew what they name.
    lines_outdated as (
        select
            built.basket_id,
            built.line_number
        from {{ this }} as built
        left join products on built.product_id = products.product_id
        left join stores on built.store_id = stores.store_id
        left join households
            on
                built.household_id = households.household_id
                and {{ is_version_at('households', 'built.sold_at') }}
        where
            (
                built.product_key = {{ unknown_key() }}
                and products.product_key is not null
            )
            or (built.store_key = {{ unknown_key() }} and stores.store_key is not null)
            or (
                built.household_key = {{ unknown_household_key() }}
                and households.household_key is not null
            )
    ),

    lines_due as (
        select * from lines_loaded
        union
        select * from lines_outdated
    ),
{% endif %}

final as (
    select
        lines.basket_id,
        lines.line_number,
        coalesce(products.product_key, {{ unknown_key() }}) as product_key,
        coalesce(stores.store_key, {{ unknown_key() }}) as store_key,
        coalesce(households.household_key, {{ unknown_household_key() }})
            as household_key,
        lines.product_id,
        lines.store_id,
        lines.household_id,
        lines.sold_date,
        lines.sold_hour,
        lines.retail_week,
        lines.quantity,
        lines.sales_amount,
        lines.retail_discount_amount,
        lines.coupon_discount_amount,
        lines.coupon_match_discount_amount,
        lines.sold_at,
        lines.loaded_at
    from lines
    {% if is_incremental() %}
        inner join lines_due
            on
                lines.basket_id = lines_due.basket_id
                and lines.line_number = lines_due.line_number
    {% endif %}
    left join products on lines.product_id = products.product_id
    left join stores on lines.store_id = stores.store_id
    left join households
        on
            lines.household_id = households.household_id
            and {{ is_version_at('households', 'lines.sold_at') }}
)

select * from final
