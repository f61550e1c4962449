-- One row per household, coupon, campaign and day it was redeemed on.
with

redemptions as (
    select * from {{ ref('stg_marketing__coupon_redemptions') }}
),

campaigns as (
    select * from {{ ref('dim_campaign') }}
),

households as (
    select * from {{ ref('dim_household') }}
),

final as (
    select
        redemptions.coupon_upc,
        coalesce(campaigns.campaign_key, {{ unknown_key() }}) as campaign_key,
        coalesce(households.household_key, {{ unknown_household_key() }})
            as household_key,
        redemptions.campaign_id,
        redemptions.household_id,
        redemptions.redeemed_date
    from redemptions
    left join campaigns on redemptions.campaign_id = campaigns.campaign_id
    left join households
        on
            redemptions.household_id = households.household_id
            and {{ is_version_at('households', 'redemptions.redeemed_date') }}
)

select * from final
