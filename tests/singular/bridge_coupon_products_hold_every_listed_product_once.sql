-- Guards the way from a coupon to its products through the marketing system's nested
-- lists: each coupon has as many products as its list names different ones.
with

from_marketing as (
    select
        coupons.coupon_upc,
        coupons.campaign_id,
        count(distinct coupon_products.product_id) as products
    from {{ ref('stg_marketing__coupons') }} as coupons
    inner join {{ ref('stg_marketing__coupon_products') }} as coupon_products
        on coupons.coupon_row_id = coupon_products.coupon_row_id
    group by
        coupons.coupon_upc,
        coupons.campaign_id
),

from_marts as (
    select
        coupon_upc,
        campaign_id,
        count(*) as products
    from {{ ref('bridge_coupon_products') }}
    group by
        coupon_upc,
        campaign_id
)

select
    coalesce(from_marketing.coupon_upc, from_marts.coupon_upc) as coupon_upc,
    coalesce(from_marketing.campaign_id, from_marts.campaign_id) as campaign_id,
    from_marketing.products as products_of_marketing,
    from_marts.products as products_of_marts
from from_marketing
full outer join from_marts
    on
        from_marketing.coupon_upc = from_marts.coupon_upc
        and from_marketing.campaign_id = from_marts.campaign_id
where coalesce(from_marketing.products, 0) != coalesce(from_marts.products, 0)
