-- One row per payment of the last four weeks that is unusual for its household.
{{ config(materialized='view') }}
{% set moment = project_moment('event_spans') %}

with

event_spans as (
    select * from {{ ref('fct_event_spans') }}
    where event_kind = 'payment attempt'
),

recent_payments as (
    select * from {{ ref('fct_payment_events') }}
    where
        payment_status in ('authorized', 'declined')
        and occurred_at >= {{ moment }} - interval 28 day
),

order_events as (
    select * from {{ ref('fct_order_events') }}
),

baskets as (
    select * from {{ ref('fct_baskets') }}
),

household_days as (
    select
        household_id,
        sold_date,
        count(*) as basket_count,
        sum(cast(sales_amount as double)) as sales_amount,
        sum(power(cast(sales_amount as double), 2)) as squared_amount
    from baskets
    where sold_at < {{ moment }} - interval 28 day
    group by
        household_id,
        sold_date
),

-- What a household does without those four weeks, so that a fraud is no habit.
households as (
    select
        household_id,
        sum(basket_count) as basket_count,
        max(basket_count) as most_baskets_a_day,
        sum(sales_amount) / sum(basket_count) as mean_amount,
        sqrt(greatest(
            sum(squared_amount) / sum(basket_count)
            - power(sum(sales_amount) / sum(basket_count), 2),
            0
        )) as deviation_amount
    from household_days
    group by household_id
),

payments_paced as (
    select
        *,
        count(*) over (
            partition by household_id
            order by occurred_at
            range between interval 1 hour preceding and current row
        ) as payments_within_hour
    from recent_payments
),

-- Where its orders go. Where it paid from is none of them: a fraud would make its own
-- place a usual one.
usual_places as (
    select distinct
        household_id,
        delivery_latitude as latitude,
        delivery_longitude as longitude
    from order_events
),

payments_placed as (
    select
        payments.payment_id,
        payments.payment_status,
        min({{ kilometres_between(
            'usual_places.latitude', 'usual_places.longitude',
            'payments.payment_latitude', 'payments.payment_longitude'
        ) }}) as distance_km
    from recent_payments as payments
    inner join usual_places
        on payments.household_id = usual_places.household_id
    group by
        payments.payment_id,
        payments.payment_status
),

payments_judged as (
    select
        payments_paced.*,
        households.mean_amount,
        payments_placed.distance_km,
        coalesce(
            households.basket_count >= 10
            and payments_paced.payment_amount >= 50
            and payments_paced.payment_amount
            > households.mean_amount + 4 * households.deviation_amount,
            false
        ) as is_unusual_amount,
        coalesce(payments_placed.distance_km > 100, false) as is_unusual_distance,
        payments_paced.payments_within_hour >= 3
        and payments_paced.payments_within_hour
        > coalesce(households.most_baskets_a_day, 0) as is_unusual_pace
    from payments_paced
    left join households on payments_paced.household_id = households.household_id
    left join payments_placed
        on
            payments_paced.payment_id = payments_placed.payment_id
            and payments_paced.payment_status = payments_placed.payment_status
),

final as (
    select
        payment_id,
        payment_status,
        order_id,
        household_id,
        concat_ws(
            '; ',
            case
                when is_unusual_amount
                    then
                        '$' || cast(payment_amount as {{ dbt.type_string() }})
                        || ' where a receipt of theirs comes to $'
                        || cast(
                            cast(mean_amount as decimal(12, 2))
                            as {{ dbt.type_string() }}
                        )
            end,
            case
                when is_unusual_distance
                    then
                        cast(
                            cast(distance_km as bigint) as {{ dbt.type_string() }}
                        )
                        || ' km from any place their orders go to'
            end,
            case
                when is_unusual_pace
                    then
                        cast(payments_within_hour as {{ dbt.type_string() }})
                        || ' payments within an hour'
            end
        ) as reasons,
        is_unusual_amount,
        is_unusual_distance,
        is_unusual_pace,
        payment_amount,
        cast(mean_amount as decimal(12, 2)) as usual_amount,
        cast(distance_km as decimal(12, 3)) as distance_km,
        payments_within_hour,
        occurred_at as paid_at
    from payments_judged
    where is_unusual_amount or is_unusual_distance or is_unusual_pace
)

select * from final
