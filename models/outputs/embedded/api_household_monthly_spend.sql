-- One row per household and month with at least one basket.
with

baskets as (
    select * from {{ ref('fct_baskets') }}
),

sales as (
    select * from {{ ref('fct_sales') }}
),

products as (
    select * from {{ ref('dim_product') }}
),

dates as (
    select * from {{ ref('dim_date') }}
),

monthly_spend as (
    select
        baskets.household_id,
        dates.month_start_date,
        count(*) as baskets,
        cast(sum(baskets.sales_amount) as decimal(18, 2)) as sales_amount,
        cast(
            sum(baskets.sales_amount - baskets.coupon_discount_amount)
            as decimal(18, 2)
        ) as paid_amount,
        cast(sum(
            baskets.retail_discount_amount
            + baskets.coupon_discount_amount
            + baskets.coupon_match_discount_amount
        ) as decimal(18, 2)) as savings_amount
    from baskets
    inner join dates on baskets.sold_date = dates.date_day
    group by baskets.household_id, dates.month_start_date
),

department_spend as (
    select
        sales.household_id,
        dates.month_start_date,
        coalesce(products.department_name, products.department) as department_name,
        cast(sum(sales.sales_amount) as decimal(18, 2)) as sales_amount
    from sales
    inner join dates on sales.sold_date = dates.date_day
    inner join products on sales.product_key = products.product_key
    group by
        sales.household_id,
        dates.month_start_date,
        coalesce(products.department_name, products.department)
),

departments_ranked as (
    select
        household_id,
        month_start_date,
        department_name,
        sales_amount,
        row_number() over (
            partition by household_id, month_start_date
            order by sales_amount desc, department_name asc
        ) as department_rank
    from department_spend
    where sales_amount > 0
),

final as (
    select
        monthly_spend.household_id,
        monthly_spend.month_start_date,
        first_department.department_name as top_department_1,
        second_department.department_name as top_department_2,
        third_department.department_name as top_department_3,
        monthly_spend.baskets,
        monthly_spend.sales_amount,
        monthly_spend.paid_amount,
        monthly_spend.savings_amount,
        first_department.sales_amount as top_department_1_sales_amount,
        second_department.sales_amount as top_department_2_sales_amount,
        third_department.sales_amount as top_department_3_sales_amount
    from monthly_spend
    left join departments_ranked as first_department
        on
            monthly_spend.household_id = first_department.household_id
            and monthly_spend.month_start_date = first_department.month_start_date
            and first_department.department_rank = 1
    left join departments_ranked as second_department
        on
            monthly_spend.household_id = second_department.household_id
            and monthly_spend.month_start_date = second_department.month_start_date
            and second_department.department_rank = 2
    left join departments_ranked as third_department
        on
            monthly_spend.household_id = third_department.household_id
            and monthly_spend.month_start_date = third_department.month_start_date
            and third_department.department_rank = 3
)

select * from final
