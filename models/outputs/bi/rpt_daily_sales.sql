-- One row per day, store and department with at least one receipt line.
-- `baskets` does not add up across departments: one basket visits several.
with

sales as (
    select * from {{ ref('fct_sales') }}
),

products as (
    select * from {{ ref('dim_product') }}
),

stores as (
    select * from {{ ref('dim_store') }}
),

daily_sales as (
    select
        sales.sold_date,
        sales.store_key,
        products.department,
        products.department_name,
        count(distinct sales.basket_id) as baskets,
        sum(sales.quantity) as quantity,
        sum(sales.sales_amount) as sales_amount,
        sum(sales.retail_discount_amount) as retail_discount_amount,
        sum(sales.coupon_discount_amount) as coupon_discount_amount,
        sum(sales.coupon_match_discount_amount) as coupon_match_discount_amount
    from sales
    inner join products on sales.product_key = products.product_key
    group by
        sales.sold_date,
        sales.store_key,
        products.department,
        products.department_name
),

final as (
    select
        daily_sales.sold_date,
        daily_sales.store_key,
        stores.store_id,
        stores.store_code,
        stores.store_name,
        daily_sales.department,
        coalesce(
            daily_sales.department_name, daily_sales.department
        ) as department_name,
        daily_sales.baskets,
        cast(daily_sales.quantity as bigint) as quantity,
        cast(daily_sales.sales_amount as decimal(18, 2)) as sales_amount,
        cast(
            daily_sales.retail_discount_amount as decimal(18, 2)
        ) as retail_discount_amount,
        cast(
            daily_sales.coupon_discount_amount as decimal(18, 2)
        ) as coupon_discount_amount,
        cast(
            daily_sales.coupon_match_discount_amount as decimal(18, 2)
        ) as coupon_match_discount_amount
    from daily_sales
    inner join stores on daily_sales.store_key = stores.store_key
)

select * from final
