-- One row per household, coupon, campaign and day it was redeemed on.
select
    household_id,
    coupon_upc,
    campaign_id,
    cast(redeemed_on as date) as redeemed_date,
    updated_at,
    _loaded_at as loaded_at
from {{ source('marketing', 'coupon_redemptions') }}
