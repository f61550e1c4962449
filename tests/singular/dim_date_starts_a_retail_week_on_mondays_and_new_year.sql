-- Guards the calendar: no day is missing, and the retail week turns on Mondays and with
-- the year, and on no other day.
with

days as (
    select
        date_day,
        year,
        day_of_week,
        retail_week,
        lag(date_day) over (order by date_day asc) as previous_day,
        lag(year) over (order by date_day asc) as previous_year,
        lag(retail_week) over (order by date_day asc) as previous_week
    from {{ ref('dim_date') }}
)

select
    date_day,
    previous_day,
    retail_week,
    previous_week
from days
where
    {{ dbt.datediff('previous_day', 'date_day', 'day') }} != 1
    or retail_week != case
        when year != coalesce(previous_year, 0) then 1
        when day_of_week = 1 then previous_week + 1
        else previous_week
    end
