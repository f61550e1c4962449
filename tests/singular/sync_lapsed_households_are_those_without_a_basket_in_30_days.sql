-- Guards marketing from writing to a household that just shopped, and from forgetting
-- one: the table is compared with receipts, both ways.
with

shoppers as (
    select
        household_id,
        max({{ dbt.datediff('sold_date', today(), 'day') }} <= 30) as is_active
    from {{ ref('fct_baskets') }}
    where sold_date < {{ today() }}
    group by household_id
)

select
    coalesce(shoppers.household_id, lapsed.household_id) as household_id,
    shoppers.is_active,
    lapsed.last_sold_date
from shoppers
full outer join {{ ref('sync_lapsed_households') }} as lapsed
    on shoppers.household_id = lapsed.household_id
where
    shoppers.household_id is null
    or shoppers.is_active = (lapsed.household_id is not null)
