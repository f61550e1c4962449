-- Guards whoever sums baskets instead of lines: each receipt of the tills is one
-- basket, with the money of its lines to the cent.
with

lines as (
    {{ line_totals(ref('fct_sales'), ['basket_id']) }}
)

select
    coalesce(receipts.basket_id, baskets.basket_id) as basket_id,
    baskets.line_count as line_count_of_basket,
    lines.line_count as line_count_of_lines,
    baskets.sales_amount as sales_amount_of_basket,
    lines.sales_amount as sales_amount_of_lines
from {{ ref('stg_pos__baskets') }} as receipts
full outer join {{ ref('fct_baskets') }} as baskets
    on receipts.basket_id = baskets.basket_id
left join lines on baskets.basket_id = lines.basket_id
where
    receipts.basket_id is null
    or baskets.basket_id is null
    or baskets.line_count != coalesce(lines.line_count, 0)
    or baskets.sales_amount != coalesce(lines.sales_amount, 0)
    or baskets.retail_discount_amount
    + baskets.coupon_discount_amount
    + baskets.coupon_match_discount_amount
    != coalesce(lines.discount_amount, 0)
