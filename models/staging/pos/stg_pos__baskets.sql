-- One row per receipt.
select
    basket_id,
    household_id,
    store_id,
    week as retail_week,
    sold_at,
    updated_at,
    _loaded_at as loaded_at
from {{ source('pos', 'baskets') }}
