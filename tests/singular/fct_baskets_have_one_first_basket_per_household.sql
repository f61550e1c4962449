-- Guards counts of new shoppers: each household has exactly one first basket, and none
-- before it.
select
    household_id,
    count(*) filter (where is_first_basket) as first_baskets,
    min(sold_at) as first_sold_at,
    min(sold_at) filter (where is_first_basket) as sold_at_of_first_basket
from {{ ref('fct_baskets') }}
group by household_id
having
    count(*) filter (where is_first_basket) != 1
    or min(sold_at) != min(sold_at) filter (where is_first_basket)
