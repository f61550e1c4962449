-- Guards marketing's assumption that only contacted households redeem: the report
-- counts their redemptions, so one by anybody else would be missing from it.
with

from_marts as (
    select
        (select count(*) from {{ ref('fct_campaign_contacts') }}) as contacts,
        (select count(*) from {{ ref('fct_coupon_redemptions') }}) as redemptions
),

from_report as (
    select
        sum(contacted_households) as contacts,
        sum(redemptions) as redemptions
    from {{ ref('rpt_campaign_results') }}
)

select
    from_marts.contacts as contacts_of_marts,
    from_report.contacts as contacts_of_report,
    from_marts.redemptions as redemptions_of_marts,
    from_report.redemptions as redemptions_of_report
from from_marts
cross join from_report
where
    from_marts.contacts != from_report.contacts
    or from_marts.redemptions != from_report.redemptions
