-- One row per click.
with

clicks as (
    select * from {{ ref('stg_web_shop__clicks') }}
),

clicks_deduped as (
    {{ first_copies('clicks', ['click_id']) }}
),

final as (
    select
        click_id,
        visitor_id,
        household_id,
        order_id,
        page_type,
        product_id,
        department,
        referrer,
        device,
        occurred_at,
        loaded_at
    from clicks_deduped
)

select * from final
