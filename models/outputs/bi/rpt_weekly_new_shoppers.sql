-- One row per week (Monday to Sunday, local time) from the first to the last sale,
-- weeks without a new shopper included.
-- The first weeks count every household as new: the data starts there, not the shop.
with

baskets as (
    select * from {{ ref('fct_baskets') }}
),

dates as (
    select * from {{ ref('dim_date') }}
),

sales_period as (
    select
        min(sold_date) as first_sold_date,
        max(sold_date) as last_sold_date
    from baskets
),

weeks as (
    select
        dates.week_start_date,
        count(*) as days_observed
    from dates
    inner join sales_period
        on
            dates.date_day >= sales_period.first_sold_date
            and dates.date_day <= sales_period.last_sold_date
    group by dates.week_start_date
),

weekly_baskets as (
    select
        dates.week_start_date,
        count(distinct baskets.household_id) as active_households,
        count(*) filter (where baskets.is_first_basket) as new_households,
        sum(baskets.sales_amount) filter (
            where baskets.is_first_basket
        ) as first_basket_sales_amount
    from baskets
    inner join dates on baskets.sold_date = dates.date_day
    group by dates.week_start_date
),

zero_filled as (
    select
        weeks.week_start_date,
        weeks.days_observed,
        coalesce(weekly_baskets.new_households, 0) as new_households,
        coalesce(weekly_baskets.active_households, 0) as active_households,
        coalesce(
            weekly_baskets.first_basket_sales_amount, 0
        ) as first_basket_sales_amount
    from weeks
    left join weekly_baskets
        on weeks.week_start_date = weekly_baskets.week_start_date
),

final as (
    select
        week_start_date,
        days_observed < 7 as is_partial_week,
        new_households,
        cast(
            sum(new_households) over (
                order by week_start_date
                rows between unbounded preceding and current row
            ) as bigint
        ) as households_to_date,
        active_households,
        cast(
            first_basket_sales_amount as decimal(18, 2)
        ) as first_basket_sales_amount
    from zero_filled
)

select * from final
