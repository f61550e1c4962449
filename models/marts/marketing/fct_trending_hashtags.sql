-- One row per day and hashtag that trended.
with

hashtags as (
    select * from {{ ref('stg_trends__hashtags') }}
),

sales as (
    select * from {{ ref('fct_sales') }}
),

products as (
    select * from {{ ref('dim_product') }}
),

category_days as (
    select
        sales.sold_date,
        products.product_category,
        sum(sales.sales_amount) as sales_amount
    from sales
    inner join products on sales.product_key = products.product_key
    group by sales.sold_date, products.product_category
),

-- Back to one row per day and hashtag: there are 29 days of sales to one.
hashtag_sales as (
    select
        hashtags.trend_date,
        hashtags.hashtag,
        sum(case
            when category_days.sold_date = hashtags.trend_date
                then category_days.sales_amount
        end) as sales_amount,
        sum(case
            when category_days.sold_date < hashtags.trend_date
                then category_days.sales_amount
        end) as earlier_sales_amount
    from hashtags
    inner join category_days
        on
            hashtags.product_category = category_days.product_category
            and hashtags.trend_date >= category_days.sold_date
            and cast({{ dbt.dateadd('day', -28, 'hashtags.trend_date') }} as date)
            <= category_days.sold_date
    group by hashtags.trend_date, hashtags.hashtag
),

final as (
    select
        hashtags.hashtag,
        hashtags.product_category,
        hashtags.trend_date,
        hashtags.trend_rank,
        hashtags.mention_count,
        hashtags.usual_mention_count,
        cast(coalesce(hashtag_sales.sales_amount, 0) as decimal(18, 2))
            as sales_amount,
        cast(
            coalesce(hashtag_sales.earlier_sales_amount, 0) / 28 as decimal(18, 2)
        ) as usual_sales_amount
    from hashtags
    left join hashtag_sales
        on
            hashtags.trend_date = hashtag_sales.trend_date
            and hashtags.hashtag = hashtag_sales.hashtag
)

select * from final
