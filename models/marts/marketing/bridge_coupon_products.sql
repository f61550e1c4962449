-- One row per coupon, campaign and product the coupon is good for.
with

coupons as (
    select * from {{ ref('stg_marketing__coupons') }}
),

coupon_products as (
    select * from {{ ref('stg_marketing__coupon_products') }}
),

campaigns as (
    select * from {{ ref('dim_campaign') }}
),

products as (
    select * from {{ ref('dim_product') }}
),

-- Some lists name a product twice.
coupon_products_deduped as (
    select distinct
        coupons.coupon_upc,
        coupons.campaign_id,
        coupon_products.product_id
    from coupon_products
    inner join coupons on coupon_products.coupon_row_id = coupons.coupon_row_id
),

final as (
    select
        pairs.coupon_upc,
        coalesce(campaigns.campaign_key, {{ unknown_key() }}) as campaign_key,
        coalesce(products.product_key, {{ unknown_key() }}) as product_key,
        pairs.campaign_id,
        pairs.product_id
    from coupon_products_deduped as pairs
    left join campaigns on pairs.campaign_id = campaigns.campaign_id
    left join products on pairs.product_id = products.product_id
)

select * from final
