-- Guards the assumption that the tills' clock is UTC and that their week turns on
-- Monday at midnight of the store's own time: the week of the local day is the one the
-- tills printed, for each receipt.
select
    baskets.basket_id,
    baskets.sold_at,
    baskets.sold_date,
    baskets.retail_week as retail_week_of_tills,
    dates.retail_week as retail_week_of_calendar
from {{ ref('fct_baskets') }} as baskets
left join {{ ref('dim_date') }} as dates on baskets.sold_date = dates.date_day
where
    dates.retail_week is null
    or baskets.retail_week != dates.retail_week
