-- One row per campaign.
-- Uplift is a difference-in-differences over established households (first basket
-- before the campaign): the change in daily spend from the window before the campaign
-- to the window from its start, of contacted households less all not_contacted.
with

campaigns as (
    select * from {{ ref('dim_campaign') }}
    where campaign_id is not null
),

contacts as (
    select * from {{ ref('fct_campaign_contacts') }}
),

redemptions as (
    select * from {{ ref('fct_coupon_redemptions') }}
),

baskets as (
    select * from {{ ref('fct_baskets') }}
),

redeemers as (
    select
        campaign_id,
        household_id,
        count(*) as redemptions
    from redemptions
    group by
        campaign_id,
        household_id
),

responses as (
    select
        contacts.campaign_id,
        count(*) as contacted_households,
        count(redeemers.household_id) as redeeming_households,
        coalesce(sum(redeemers.redemptions), 0) as redemptions
    from contacts
    left join redeemers
        on
            contacts.campaign_id = redeemers.campaign_id
            and contacts.household_id = redeemers.household_id
    group by contacts.campaign_id
),

sales_period as (
    select
        min(sold_date) as first_sold_date,
        max(sold_date) as last_sold_date
    from baskets
),

-- Both windows have one length: the campaign's, cut where the data begins or ends.
campaigns_measured as (
    select
        campaigns.campaign_id,
        campaigns.start_date,
        least(
            campaigns.duration_days,
            {{ dbt.datediff(
                'campaigns.start_date', 'sales_period.last_sold_date', 'day'
            ) }} + 1,
            {{ dbt.datediff(
                'sales_period.first_sold_date', 'campaigns.start_date', 'day'
            ) }}
        ) as window_days
    from campaigns
    inner join sales_period
        on
            campaigns.start_date > sales_period.first_sold_date
            and campaigns.start_date <= sales_period.last_sold_date
),

windows as (
    select
        campaign_id,
        start_date,
        window_days,
        cast(
            {{ dbt.dateadd('day', '-window_days', 'start_date') }} as date
        ) as first_date,
        cast(
            {{ dbt.dateadd('day', 'window_days - 1', 'start_date') }} as date
        ) as last_date
    from campaigns_measured
),

window_sales as (
    select
        windows.campaign_id,
        baskets.household_id,
        sum(baskets.sales_amount) filter (
            where baskets.sold_date < windows.start_date
        ) as sales_before,
        sum(baskets.sales_amount) filter (
            where baskets.sold_date >= windows.start_date
        ) as sales_during
    from baskets
    inner join windows
        on
            baskets.sold_date >= windows.first_date
            and baskets.sold_date <= windows.last_date
    group by
        windows.campaign_id,
        baskets.household_id
),

-- One row per campaign and household: each join finds at most one row.
established_households as (
    select
        windows.campaign_id,
        windows.window_days,
        contacts.household_id is not null as is_contacted,
        coalesce(window_sales.sales_before, 0) as sales_before,
        coalesce(window_sales.sales_during, 0) as sales_during
    from windows
    inner join baskets as first_baskets
        on
            first_baskets.is_first_basket
            and windows.start_date > first_baskets.sold_date
    left join contacts
        on
            windows.campaign_id = contacts.campaign_id
            and first_baskets.household_id = contacts.household_id
    left join window_sales
        on
            windows.campaign_id = window_sales.campaign_id
            and first_baskets.household_id = window_sales.household_id
),

group_spend as (
    select
        campaign_id,
        is_contacted,
        count(*) as households,
        cast(sum(sales_before) as double) / count(*) / window_days as spend_before,
        cast(sum(sales_during) as double) / count(*) / window_days as spend_during,
        var_samp(cast(sales_during - sales_before as double) / window_days)
        / count(*) as squared_error
    from established_households
    group by
        campaign_id,
        is_contacted,
        window_days
),

final as (
    select
        campaigns.campaign_key,
        campaigns.campaign_id,
        campaigns.campaign_type,
        campaigns.start_date,
        campaigns.end_date,
        coalesce(
            windows.window_days < campaigns.duration_days, true
        ) as is_window_cut,
        coalesce(responses.contacted_households, 0) as contacted_households,
        coalesce(responses.redeeming_households, 0) as redeeming_households,
        cast(coalesce(responses.redemptions, 0) as bigint) as redemptions,
        cast(responses.redeeming_households as double)
        / responses.contacted_households as redemption_rate,
        cast(windows.window_days as bigint) as window_days,
        coalesce(contacted.households, 0) as measured_contacted_households,
        coalesce(not_contacted.households, 0) as measured_other_households,
        round(contacted.spend_before, 4) as contacted_daily_spend_before,
        round(contacted.spend_during, 4) as contacted_daily_spend_during,
        round(not_contacted.spend_before, 4) as other_daily_spend_before,
        round(not_contacted.spend_during, 4) as other_daily_spend_during,
        round(
            (contacted.spend_during - contacted.spend_before)
            - (not_contacted.spend_during - not_contacted.spend_before),
            4
        ) as daily_spend_uplift,
        round(
            sqrt(contacted.squared_error + not_contacted.squared_error), 4
        ) as daily_spend_uplift_standard_error
    from campaigns
    left join responses on campaigns.campaign_id = responses.campaign_id
    left join windows on campaigns.campaign_id = windows.campaign_id
    left join group_spend as contacted
        on
            campaigns.campaign_id = contacted.campaign_id
            and contacted.is_contacted
    left join group_spend as not_contacted
        on
            campaigns.campaign_id = not_contacted.campaign_id
            and not not_contacted.is_contacted
)

select * from final
