-- One row per product line on a receipt.
select
    basket_id,
    line_number,
    product_id,
    quantity,
    cast(sales_value as decimal(12, 2)) as sales_amount,
    cast(retail_disc as decimal(12, 2)) as retail_discount_amount,
    cast(coupon_disc as decimal(12, 2)) as coupon_discount_amount,
    cast(coupon_match_disc as decimal(12, 2)) as coupon_match_discount_amount,
    updated_at,
    _loaded_at as loaded_at
from {{ source('pos', 'basket_items') }}
