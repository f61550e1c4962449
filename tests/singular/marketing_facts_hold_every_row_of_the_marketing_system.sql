-- Guards contacts and redemptions from joins that lose or double them: rows in are rows
-- out, for each campaign.
with

from_marketing as (
    select
        campaign_id,
        'contacts' as fact,
        count(*) as row_count
    from {{ ref('stg_marketing__campaign_recipients') }}
    group by campaign_id
    union all
    select
        campaign_id,
        'redemptions' as fact,
        count(*) as row_count
    from {{ ref('stg_marketing__coupon_redemptions') }}
    group by campaign_id
),

from_marts as (
    select
        campaign_id,
        'contacts' as fact,
        count(*) as row_count
    from {{ ref('fct_campaign_contacts') }}
    group by campaign_id
    union all
    select
        campaign_id,
        'redemptions' as fact,
        count(*) as row_count
    from {{ ref('fct_coupon_redemptions') }}
    group by campaign_id
)

select
    coalesce(from_marketing.fact, from_marts.fact) as fact,
    coalesce(from_marketing.campaign_id, from_marts.campaign_id) as campaign_id,
    from_marketing.row_count as row_count_of_marketing,
    from_marts.row_count as row_count_of_marts
from from_marketing
full outer join from_marts
    on
        from_marketing.fact = from_marts.fact
        and from_marketing.campaign_id = from_marts.campaign_id
where coalesce(from_marketing.row_count, 0) != coalesce(from_marts.row_count, 0)
