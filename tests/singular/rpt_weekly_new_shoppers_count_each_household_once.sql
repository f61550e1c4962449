-- Guards the flag is_first_basket that the report trusts: every household that ever
-- bought is new in exactly one week.
with

from_marts as (
    select count(distinct household_id) as households
    from {{ ref('fct_baskets') }}
),

from_report as (
    select
        sum(new_households) as households,
        max(households_to_date) as households_to_date
    from {{ ref('rpt_weekly_new_shoppers') }}
)

select
    from_marts.households as households_of_marts,
    from_report.households as households_of_report,
    from_report.households_to_date
from from_marts
cross join from_report
where
    from_marts.households != from_report.households
    or from_marts.households != from_report.households_to_date
