-- One row per household that shopped before but not in the 30 days before today.
-- `row_hash` covers all that the receiver is told, so a sync sends a row only when
-- something in it changed; a household that shops again leaves the table.
with

baskets as (
    select * from {{ ref('fct_baskets') }}
    where sold_date < {{ today() }}
),

sales as (
    select * from {{ ref('fct_sales') }}
    where sold_date < {{ today() }}
),

products as (
    select * from {{ ref('dim_product') }}
),

stores as (
    select * from {{ ref('dim_store') }}
),

histories as (
    select
        household_id,
        min(sold_date) as first_sold_date,
        max(sold_date) as last_sold_date,
        count(*) as baskets,
        sum(sales_amount) as sales_amount
    from baskets
    group by household_id
),

lapsed_households as (
    select
        *,
        {{ dbt.datediff('last_sold_date', today(), 'day') }} as days_since_last_basket,
        cast({{ dbt.dateadd('day', 31, 'last_sold_date') }} as date) as lapsed_date
    from histories
    where {{ dbt.datediff('last_sold_date', today(), 'day') }} > 30
),

stores_ranked as (
    select
        household_id,
        store_key,
        row_number() over (
            partition by household_id
            order by count(*) desc, store_key asc
        ) as store_rank
    from baskets
    group by
        household_id,
        store_key
),

departments_ranked as (
    select
        sales.household_id,
        coalesce(products.department_name, products.department) as department_name,
        row_number() over (
            partition by sales.household_id
            order by
                sum(sales.sales_amount) desc,
                coalesce(products.department_name, products.department) asc
        ) as department_rank
    from sales
    inner join products on sales.product_key = products.product_key
    group by
        sales.household_id,
        coalesce(products.department_name, products.department)
),

profiles as (
    select
        households.household_id,
        case
            when households.days_since_last_basket <= 60 then 'recent'
            when households.days_since_last_basket <= 90 then 'long'
            else 'lost'
        end as lapse_stage,
        stores.store_code as favourite_store_code,
        stores.store_name as favourite_store_name,
        departments_ranked.department_name as favourite_department,
        households.baskets,
        cast(households.sales_amount as decimal(18, 2)) as sales_amount,
        cast(
            households.sales_amount / households.baskets as decimal(18, 2)
        ) as average_basket_amount,
        households.first_sold_date,
        households.last_sold_date,
        households.lapsed_date
    from lapsed_households as households
    inner join stores_ranked
        on
            households.household_id = stores_ranked.household_id
            and stores_ranked.store_rank = 1
    inner join stores on stores_ranked.store_key = stores.store_key
    left join departments_ranked
        on
            households.household_id = departments_ranked.household_id
            and departments_ranked.department_rank = 1
),

final as (
    select
        household_id,
        lapse_stage,
        favourite_store_code,
        favourite_store_name,
        favourite_department,
        baskets,
        sales_amount,
        average_basket_amount,
        first_sold_date,
        last_sold_date,
        lapsed_date,
        {{ row_hash([
            'household_id', 'lapse_stage', 'favourite_store_code',
            'favourite_store_name', 'favourite_department', 'baskets',
            'sales_amount', 'average_basket_amount', 'first_sold_date',
            'last_sold_date', 'lapsed_date'
        ]) }} as row_hash
    from profiles
)

select * from final
