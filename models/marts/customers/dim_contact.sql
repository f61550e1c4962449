-- One row per contact, and the unknown member.
with

listed_contacts as (
    select * from {{ ref('stg_crm__contacts') }}
),

leads as (
    select * from {{ ref('stg_crm__leads') }}
),

leads_won as (
    select
        household_id,
        min_by(lead_channel, created_at) as lead_channel,
        cast(min(created_at) as date) as lead_created_date,
        cast(min(closed_at) as date) as lead_won_date
    from leads
    where lead_status = 'won'
    group by household_id
),

contacts as (
    select
        listed_contacts.contact_id as contact_key,
        listed_contacts.contact_id,
        listed_contacts.household_id,
        leads_won.lead_channel,
        listed_contacts.has_email_consent,
        listed_contacts.has_post_consent,
        leads_won.lead_created_date,
        leads_won.lead_won_date
    from listed_contacts
    left join leads_won
        on listed_contacts.household_id = leads_won.household_id
),

unknown_member as (
    select
        'unknown' as contact_key,
        cast(null as {{ dbt.type_string() }}) as contact_id,
        cast(null as bigint) as household_id,
        cast(null as {{ dbt.type_string() }}) as lead_channel,
        cast(null as boolean) as has_email_consent,
        cast(null as boolean) as has_post_consent,
        cast(null as date) as lead_created_date,
        cast(null as date) as lead_won_date
),

final as (
    select * from contacts
    union all
    select * from unknown_member
)

select * from final
