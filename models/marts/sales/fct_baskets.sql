-- One row per receipt, one without lines included.
with

baskets as (
    select * from {{ ref('int_baskets_localised') }}
),

sales as (
    select * from {{ ref('fct_sales') }}
),

stores as (
    select * from {{ ref('dim_store') }}
),

households as (
    select * from {{ ref('dim_household') }}
),

basket_sums as (
    select
        basket_id,
        count(*) as line_count,
        count(distinct product_id) as product_count,
        sum(quantity) as quantity,
        sum(sales_amount) as sales_amount,
        sum(retail_discount_amount) as retail_discount_amount,
        sum(coupon_discount_amount) as coupon_discount_amount,
        sum(coupon_match_discount_amount) as coupon_match_discount_amount
    from sales
    group by basket_id
),

baskets_numbered as (
    select
        *,
        row_number() over (
            partition by household_id
            order by sold_at asc, basket_id asc
        ) as basket_number
    from baskets
),

final as (
    select
        baskets.basket_id,
        coalesce(stores.store_key, {{ unknown_key() }}) as store_key,
        coalesce(households.household_key, {{ unknown_household_key() }})
            as household_key,
        baskets.household_id,
        baskets.store_id,
        baskets.sold_date,
        baskets.sold_hour,
        baskets.retail_week,
        baskets.basket_number = 1 as is_first_basket,
        coalesce(sums.line_count, 0) as line_count,
        coalesce(sums.product_count, 0) as product_count,
        cast(coalesce(sums.quantity, 0) as bigint) as quantity,
        {% for amount in [
            'sales_amount', 'retail_discount_amount', 'coupon_discount_amount',
            'coupon_match_discount_amount'
        ] -%}
            cast(coalesce(sums.{{ amount }}, 0) as decimal(18, 2)) as {{ amount }},
        {% endfor -%}
        baskets.sold_at
    from baskets_numbered as baskets
    left join basket_sums as sums on baskets.basket_id = sums.basket_id
    left join stores on baskets.store_id = stores.store_id
    left join households
        on
            baskets.household_id = households.household_id
            and {{ is_version_at('households', 'baskets.sold_at') }}
)

select * from final
