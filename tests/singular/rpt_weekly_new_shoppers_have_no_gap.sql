-- Guards the report's zero-filling: each week starts seven days after the one before.
with

weeks as (
    select
        week_start_date,
        lag(week_start_date) over (order by week_start_date) as previous_start_date
    from {{ ref('rpt_weekly_new_shoppers') }}
)

select
    week_start_date,
    previous_start_date
from weeks
where {{ dbt.datediff('previous_start_date', 'week_start_date', 'day') }} != 7
