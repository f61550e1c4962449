-- One row per coupon and campaign.
select
    coupon_upc,
    campaign_id,
    _dlt_id as coupon_row_id,
    updated_at,
    _loaded_at as loaded_at
from {{ source('marketing', 'coupons') }}
