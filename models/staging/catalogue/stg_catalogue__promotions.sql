-- One row per line of a promotion file; some repeat a product, store and week.
select
    product_id,
    store_id,
    week as retail_week,
    display_location,
    mailer_location,
    _loaded_at as loaded_at
from {{ source('catalogue', 'promotions') }}
