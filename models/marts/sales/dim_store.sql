-- One row per store of the tills, and the unknown member.
with

tills_stores as (
    select * from {{ ref('stg_pos__stores') }}
),

listed_stores as (
    select * from {{ ref('stg_catalogue__stores') }}
),

baskets as (
    select * from {{ ref('int_baskets_localised') }}
),

sales_periods as (
    select
        store_id,
        min(sold_date) as first_sold_date,
        max(sold_date) as last_sold_date
    from baskets
    group by store_id
),

stores as (
    select
        tills_stores.store_id as store_key,
        tills_stores.store_id,
        tills_stores.store_code,
        {{ or_unknown('listed_stores.store_name') }} as store_name,
        {{ or_unknown('listed_stores.store_format') }} as store_format,
        coalesce(listed_stores.time_zone, {{ home_time_zone() }}) as time_zone,
        sales_periods.first_sold_date,
        sales_periods.last_sold_date
    from tills_stores
    left join listed_stores on tills_stores.store_id = listed_stores.store_id
    left join sales_periods on tills_stores.store_id = sales_periods.store_id
),

unknown_member as (
    select
        {{ unknown_key() }} as store_key,
        cast(null as bigint) as store_id,
        {{ unknown_text() }} as store_code,
        {{ unknown_text() }} as store_name,
        {{ unknown_text() }} as store_format,
        {{ home_time_zone() }} as time_zone,
        cast(null as date) as first_sold_date,
        cast(null as date) as last_sold_date
),

final as (
    select * from stores
    union all
    select * from unknown_member
)

select * from final
