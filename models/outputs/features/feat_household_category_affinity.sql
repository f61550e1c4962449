-- One row per household, as-of date (each month's first day up to today) and product
-- category bought in the 90 days before. Sees only what was sold before the as-of date.
with

dates as (
    select * from {{ ref('dim_date') }}
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
        cast({{ dbt.dateadd('day', -90, 'date_day') }} as date) as from_date_90d
    from dates
    where
        date_day = month_start_date
        and date_day <= {{ today() }}
),

lines as (
    select
        sales.household_id,
        sales.basket_id,
        sales.sold_date,
        sales.sold_hour,
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

category_baskets as (
    select
        lines.household_id,
        lines.basket_id,
        lines.sold_date,
        lines.sold_hour,
        lines.product_category,
        sum(lines.sales_amount) as sales_amount,
        sum(lines.sales_amount) filter (where lines.pieces is not null) as paid,
        sum(lines.pieces * type_prices.average_price) as expected
    from lines
    left join type_prices
        on
            lines.month_start_date = type_prices.month_start_date
            and lines.product_type = type_prices.product_type
    group by
        lines.household_id,
        lines.basket_id,
        lines.sold_date,
        lines.sold_hour,
        lines.product_category
),

category_hours as (
    select
        category_baskets.household_id,
        as_of_dates.as_of_date,
        category_baskets.product_category,
        category_baskets.sold_hour,
        count(*) as baskets,
        sum(category_baskets.sales_amount) as sales_amount,
        sum(category_baskets.paid) as paid,
        sum(category_baskets.expected) as expected
    from category_baskets
    inner join as_of_dates
        on
            category_baskets.sold_date >= as_of_dates.from_date_90d
            and category_baskets.sold_date < as_of_dates.as_of_date
    group by
        category_baskets.household_id,
        as_of_dates.as_of_date,
        category_baskets.product_category,
        category_baskets.sold_hour
),

affinities as (
    select
        household_id,
        as_of_date,
        product_category,
        -- The hour of most baskets; of equals the earliest.
        min_by(sold_hour, sold_hour - 24 * baskets) as favourite_hour,
        sum(baskets) as baskets,
        sum(sales_amount) as sales_amount,
        cast(sum(paid) as double)
        / nullif(cast(sum(expected) as double), 0) as price_index
    from category_hours
    group by household_id, as_of_date, product_category
),

final as (
    select
        household_id,
        as_of_date,
        product_category,
        row_number() over (
            partition by household_id, as_of_date
            order by sales_amount desc, product_category asc
        ) as affinity_rank,
        favourite_hour,
        {{ price_band('price_index') }} as price_band,
        cast(baskets as bigint) as baskets_90d,
        cast(sales_amount as decimal(18, 2)) as sales_amount_90d,
        round(
            cast(sales_amount as double) / nullif(cast(
                sum(sales_amount) over (partition by household_id, as_of_date) as double
            ), 0),
            6
        ) as sales_share_90d,
        round(price_index, 4) as price_index_90d
    from affinities
)

select * from final
