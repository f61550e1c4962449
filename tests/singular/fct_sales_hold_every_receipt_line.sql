-- Guards the incremental build: whatever came late, twice or changed, each receipt has
-- the lines and, to the cent, the money that the tills tell.
with

from_tills as (
    {{ line_totals(ref('stg_pos__basket_items'), ['basket_id']) }}
),

from_marts as (
    {{ line_totals(ref('fct_sales'), ['basket_id']) }}
)

select
    coalesce(from_tills.basket_id, from_marts.basket_id) as basket_id,
    from_tills.line_count as line_count_of_tills,
    from_marts.line_count as line_count_of_marts,
    from_tills.sales_amount as sales_amount_of_tills,
    from_marts.sales_amount as sales_amount_of_marts
from from_tills
full outer join from_marts on from_tills.basket_id = from_marts.basket_id
where
    from_tills.basket_id is null
    or from_marts.basket_id is null
    or from_tills.line_count != from_marts.line_count
    or from_tills.quantity != from_marts.quantity
    or from_tills.sales_amount != from_marts.sales_amount
    or from_tills.discount_amount != from_marts.discount_amount
