-- One row per coupon handed in at a visit.
select
    _dlt_parent_id as visit_row_id,
    _dlt_list_idx as list_index,
    coupon_upc,
    campaign_id,
    _loaded_at as loaded_at
from {{ source('crm', 'visits__coupons') }}
