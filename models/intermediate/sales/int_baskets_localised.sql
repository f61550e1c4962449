-- One row per receipt, with the day and hour the store's own clock showed.
with

baskets as (
    select * from {{ ref('stg_pos__baskets') }}
),

stores as (
    select * from {{ ref('stg_catalogue__stores') }}
),

baskets_localised as (
    select
        baskets.basket_id,
        baskets.household_id,
        baskets.store_id,
        baskets.retail_week,
        {{ local_time(
            'baskets.sold_at',
            'coalesce(stores.time_zone, ' ~ home_time_zone() ~ ')'
        ) }} as sold_local_time,
        baskets.sold_at,
        baskets.loaded_at
    from baskets
    left join stores on baskets.store_id = stores.store_id
),

final as (
    select
        basket_id,
        household_id,
        store_id,
        cast(sold_local_time as date) as sold_date,
        cast(extract(hour from sold_local_time) as bigint) as sold_hour,
        retail_week,
        sold_at,
        loaded_at
    from baskets_localised
)

select * from final
