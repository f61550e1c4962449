-- One row per receipt that a till rang up for the web shop.
select
    basket_id,
    order_id,
    rung_up_at,
    updated_at,
    _loaded_at as loaded_at
from {{ source('pos', 'web_receipts') }}
