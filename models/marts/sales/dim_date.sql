-- One row per day of each calendar year in which something was sold, redeemed or
-- campaigned.
with

baskets as (
    select * from {{ ref('stg_pos__baskets') }}
),

campaigns as (
    select * from {{ ref('stg_marketing__campaigns') }}
),

redemptions as (
    select * from {{ ref('stg_marketing__coupon_redemptions') }}
),

periods as (
    select
        min(cast(sold_at as date)) as first_date,
        max(cast(sold_at as date)) as last_date
    from baskets
    union all
    select
        min(start_date) as first_date,
        max(end_date) as last_date
    from campaigns
    union all
    select
        min(redeemed_date) as first_date,
        max(redeemed_date) as last_date
    from redemptions
),

calendar as (
    select
        make_date(cast(extract(year from min(first_date)) as int), 1, 1) as first_date,
        make_date(cast(extract(year from max(last_date)) as int), 12, 31) as last_date
    from periods
),

days_listed as (
    select {{ dates_between('first_date', 'last_date') }} as listed_day
    from calendar
),

days as (
    select cast(listed_day as date) as date_day
    from days_listed
),

weeks_started as (
    select
        date_day,
        cast(date_trunc('week', date_day) as date) as week_start_date,
        -- Day 1 of the first week, which mostly lies in the year before.
        cast(
            date_trunc('week', cast(date_trunc('year', date_day) as date)) as date
        ) as first_week_start_date
    from days
),

days_numbered as (
    select
        date_day,
        week_start_date,
        {{ dbt.datediff('week_start_date', 'date_day', 'day') }} + 1 as day_of_week,
        {{ dbt.datediff('first_week_start_date', 'week_start_date', 'day') }} / 7 + 1
            as retail_week
    from weeks_started
),

final as (
    select
        date_day,
        cast(extract(year from date_day) as bigint) as year,
        cast(extract(quarter from date_day) as bigint) as quarter,
        cast(extract(month from date_day) as bigint) as month,
        cast(date_trunc('month', date_day) as date) as month_start_date,
        {{ month_name('date_day') }} as month_name,
        cast(day_of_week as bigint) as day_of_week,
        {{ day_name('date_day') }} as day_name,
        day_of_week >= 6 as is_weekend,
        cast(retail_week as bigint) as retail_week,
        week_start_date
    from days_numbered
)

select * from final
