-- One row per household and as-of date (each month's first day up to today), from the
-- household's first basket on. Sees only what was sold before the as-of date.
with

dates as (
    select * from {{ ref('dim_date') }}
),

baskets as (
    select * from {{ ref('fct_baskets') }}
),

sales as (
    select * from {{ ref('fct_sales') }}
),

products as (
    select * from {{ ref('dim_product') }}
),

as_of_dates as (
    select
        date_day as as_of_date,
        cast({{ dbt.dateadd('day', -30, 'date_day') }} as date) as from_date_30d,
        cast({{ dbt.dateadd('day', -90, 'date_day') }} as date) as from_date_90d
    from dates
    where
        date_day = month_start_date
        and date_day <= {{ today() }}
),

basket_history as (
    select
        baskets.household_id,
        as_of_dates.as_of_date,
        baskets.sold_date,
        baskets.sold_hour,
        baskets.sales_amount,
        baskets.sold_date >= as_of_dates.from_date_30d as is_in_30d,
        baskets.sold_date >= as_of_dates.from_date_90d as is_in_90d
    from baskets
    inner join as_of_dates on baskets.sold_date < as_of_dates.as_of_date
),

activity as (
    select
        household_id,
        as_of_date,
        min(sold_date) as first_sold_date,
        max(sold_date) as last_sold_date,
        count(*) filter (where is_in_30d) as baskets_30d,
        count(*) filter (where is_in_90d) as baskets_90d,
        coalesce(sum(sales_amount) filter (where is_in_30d), 0) as sales_amount_30d,
        coalesce(sum(sales_amount) filter (where is_in_90d), 0) as sales_amount_90d
    from basket_history
    group by household_id, as_of_date
),

hours as (
    select
        household_id,
        as_of_date,
        sold_hour,
        count(*) as baskets
    from basket_history
    where is_in_90d
    group by household_id, as_of_date, sold_hour
),

favourite_hours as (
    select
        household_id,
        as_of_date,
        -- The hour of most baskets; of equals the earliest.
        min_by(sold_hour, sold_hour - 24 * baskets) as favourite_hour
    from hours
    group by household_id, as_of_date
),

lines as (
    select
        sales.household_id,
        sales.sold_date,
        dates.month_start_date,
        products.product_category,
        products.product_type,
        sales.sales_amount,
        {{ pieces('sales.quantity') }} as pieces
    from sales
    inner join dates on sales.sold_date = dates.date_day
    inner join products on sales.product_key = products.product_key
),

-- As-of dates are month starts, so a whole month's prices hold no later fact.
type_prices as (
    select
        month_start_date,
        product_type,
        cast(sum(sales_amount) / sum(pieces) as decimal(12, 4)) as average_price
    from lines
    where pieces is not null
    group by month_start_date, product_type
),

daily_categories as (
    select
        lines.household_id,
        lines.sold_date,
        lines.product_category,
        sum(lines.sales_amount) filter (where lines.pieces is not null) as paid,
        sum(lines.pieces * type_prices.average_price) as expected
    from lines
    left join type_prices
        on
            lines.month_start_date = type_prices.month_start_date
            and lines.product_type = type_prices.product_type
    group by lines.household_id, lines.sold_date, lines.product_category
),

assortments as (
    select
        daily_categories.household_id,
        as_of_dates.as_of_date,
        count(distinct daily_categories.product_category) as categories_90d,
        cast(sum(daily_categories.paid) as double)
        / nullif(cast(sum(daily_categories.expected) as double), 0) as price_index
    from daily_categories
    inner join as_of_dates
        on
            daily_categories.sold_date >= as_of_dates.from_date_90d
            and daily_categories.sold_date < as_of_dates.as_of_date
    group by daily_categories.household_id, as_of_dates.as_of_date
),

final as (
    select
        activity.household_id,
        activity.as_of_date,
        favourite_hours.favourite_hour,
        {{ price_band('assortments.price_index') }} as price_band,
        {{ dbt.datediff(
            'activity.first_sold_date', 'activity.as_of_date', 'day'
        ) }} as days_since_first_basket,
        {{ dbt.datediff(
            'activity.last_sold_date', 'activity.as_of_date', 'day'
        ) }} as days_since_last_basket,
        activity.baskets_30d,
        activity.baskets_90d,
        coalesce(assortments.categories_90d, 0) as categories_90d,
        cast(activity.sales_amount_30d as decimal(18, 2)) as sales_amount_30d,
        cast(activity.sales_amount_90d as decimal(18, 2)) as sales_amount_90d,
        cast(
            activity.sales_amount_90d / nullif(activity.baskets_90d, 0)
            as decimal(18, 2)
        ) as average_basket_amount_90d,
        round(assortments.price_index, 4) as price_index_90d
    from activity
    left join favourite_hours
        on
            activity.household_id = favourite_hours.household_id
            and activity.as_of_date = favourite_hours.as_of_date
    left join assortments
        on
            activity.household_id = assortments.household_id
            and activity.as_of_date = assortments.as_of_date
)

select * from final
