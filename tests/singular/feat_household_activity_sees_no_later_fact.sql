-- Guards a data scientist's training set from facts of the future. Everything on or
-- after an as-of date is thrown away first, then recency, frequency and spend are
-- computed anew, spend from receipt lines; they must be what the features say.
with

as_of_dates as (
    select distinct as_of_date
    from {{ ref('feat_household_activity') }}
),

basket_sales as (
    select
        basket_id,
        sum(sales_amount) as sales_amount
    from {{ ref('fct_sales') }}
    group by basket_id
),

known_baskets as (
    select
        as_of_dates.as_of_date,
        baskets.household_id,
        coalesce(basket_sales.sales_amount, 0) as sales_amount,
        {{ dbt.datediff(
            'baskets.sold_date', 'as_of_dates.as_of_date', 'day'
        ) }} as days_ago
    from {{ ref('fct_baskets') }} as baskets
    inner join as_of_dates on baskets.sold_date < as_of_dates.as_of_date
    left join basket_sales on baskets.basket_id = basket_sales.basket_id
),

recomputed as (
    select
        household_id,
        as_of_date,
        max(days_ago) as days_since_first_basket,
        min(days_ago) as days_since_last_basket,
        sum(case when days_ago <= 30 then 1 else 0 end) as baskets_30d,
        sum(case when days_ago <= 90 then 1 else 0 end) as baskets_90d,
        sum(case when days_ago <= 30 then sales_amount else 0 end) as sales_amount_30d,
        sum(case when days_ago <= 90 then sales_amount else 0 end) as sales_amount_90d
    from known_baskets
    group by household_id, as_of_date
)

select
    coalesce(features.household_id, recomputed.household_id) as household_id,
    coalesce(features.as_of_date, recomputed.as_of_date) as as_of_date
from {{ ref('feat_household_activity') }} as features
full outer join recomputed
    on
        features.household_id = recomputed.household_id
        and features.as_of_date = recomputed.as_of_date
where
    features.household_id is null
    or recomputed.household_id is null
    or features.days_since_last_basket < 1
    or features.days_since_first_basket != recomputed.days_since_first_basket
    or features.days_since_last_basket != recomputed.days_since_last_basket
    or features.baskets_30d != recomputed.baskets_30d
    or features.baskets_90d != recomputed.baskets_90d
    or features.sales_amount_30d != recomputed.sales_amount_30d
    or features.sales_amount_90d != recomputed.sales_amount_90d
