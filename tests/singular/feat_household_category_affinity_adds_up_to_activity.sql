-- Guards the two feature tables from drifting apart: a household's categories add up to
-- its activity of the same window, and their shares to one.
with

affinity as (
    select
        household_id,
        as_of_date,
        count(*) as categories_90d,
        sum(sales_amount_90d) as sales_amount_90d,
        sum(sales_share_90d) as sales_share_90d
    from {{ ref('feat_household_category_affinity') }}
    group by household_id, as_of_date
)

select
    activity.household_id,
    activity.as_of_date,
    activity.sales_amount_90d as sales_amount_of_activity,
    affinity.sales_amount_90d as sales_amount_of_affinity,
    affinity.sales_share_90d
from {{ ref('feat_household_activity') }} as activity
left join affinity
    on
        activity.household_id = affinity.household_id
        and activity.as_of_date = affinity.as_of_date
where
    activity.categories_90d != coalesce(affinity.categories_90d, 0)
    or activity.sales_amount_90d != coalesce(affinity.sales_amount_90d, 0)
    -- Each share is rounded to six digits, and there are some hundred categories.
    or abs(affinity.sales_share_90d - 1) > 0.0005
