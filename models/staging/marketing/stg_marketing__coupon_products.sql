-- One row per product in a coupon's list; some lists name a product twice.
select
    _dlt_parent_id as coupon_row_id,
    _dlt_list_idx as list_index,
    product_id,
    _loaded_at as loaded_at
from {{ source('marketing', 'coupons__products') }}
