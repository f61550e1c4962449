-- One row per campaign e-mail that a contact opened.
with

email_opens as (
    select * from {{ ref('stg_crm__email_opens') }}
),

visits as (
    select * from {{ ref('stg_crm__visits') }}
),

visit_coupons as (
    select * from {{ ref('stg_crm__visit_coupons') }}
),

contacts as (
    select * from {{ ref('dim_contact') }}
),

campaigns as (
    select * from {{ ref('dim_campaign') }}
),

households as (
    select * from {{ ref('dim_household') }}
),

coupons_handed_in as (
    select
        visits.contact_id,
        visit_coupons.campaign_id,
        visits.visited_date
    from visits
    inner join visit_coupons on visits.visit_row_id = visit_coupons.visit_row_id
),

-- Back to one row per open: an open has many coupons.
opens_answered as (
    select
        email_opens.open_id,
        min(coupons_handed_in.visited_date) as first_visit_date,
        count(*) as coupon_count
    from email_opens
    inner join coupons_handed_in
        on
            email_opens.contact_id = coupons_handed_in.contact_id
            and email_opens.campaign_id = coupons_handed_in.campaign_id
            and coupons_handed_in.visited_date
            >= cast(email_opens.opened_at as date)
    group by email_opens.open_id
),

final as (
    select
        email_opens.open_id,
        coalesce(contacts.contact_key, 'unknown') as contact_key,
        coalesce(campaigns.campaign_key, {{ unknown_key() }}) as campaign_key,
        coalesce(households.household_key, {{ unknown_household_key() }})
            as household_key,
        email_opens.contact_id,
        email_opens.campaign_id,
        contacts.household_id,
        email_opens.device,
        opens_answered.open_id is not null as is_answered,
        coalesce(opens_answered.coupon_count, 0) as coupon_count,
        cast(
            {{ dbt.datediff(
                'cast(email_opens.opened_at as date)',
                'opens_answered.first_visit_date', 'day'
            ) }} as bigint
        ) as days_to_visit,
        cast(email_opens.opened_at as date) as opened_date,
        opens_answered.first_visit_date,
        email_opens.opened_at
    from email_opens
    left join contacts on email_opens.contact_id = contacts.contact_id
    left join campaigns on email_opens.campaign_id = campaigns.campaign_id
    left join households
        on
            contacts.household_id = households.household_id
            and {{ is_version_at('households', 'email_opens.opened_at') }}
    left join opens_answered on email_opens.open_id = opens_answered.open_id
)

select * from final
