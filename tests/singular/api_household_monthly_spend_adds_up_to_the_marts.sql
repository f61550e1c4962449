-- Guards what a household reads in the app: its months add up to all it ever spent, to
-- the cent, and to all its baskets, and no department outgrows the month.
with

from_marts as (
    select
        household_id,
        count(*) as baskets,
        sum(sales_amount) as sales_amount
    from {{ ref('fct_baskets') }}
    group by household_id
),

from_api as (
    select
        household_id,
        sum(baskets) as baskets,
        sum(sales_amount) as sales_amount,
        max(
            coalesce(top_department_1_sales_amount, 0)
            + coalesce(top_department_2_sales_amount, 0)
            + coalesce(top_department_3_sales_amount, 0)
            - sales_amount
        ) as excess_amount
    from {{ ref('api_household_monthly_spend') }}
    group by household_id
)

select
    coalesce(from_marts.household_id, from_api.household_id) as household_id,
    from_marts.sales_amount as sales_amount_of_marts,
    from_api.sales_amount as sales_amount_of_api
from from_marts
full outer join from_api on from_marts.household_id = from_api.household_id
where
    from_marts.household_id is null
    or from_api.household_id is null
    or from_marts.baskets != from_api.baskets
    or from_marts.sales_amount != from_api.sales_amount
    or from_api.excess_amount > 0
