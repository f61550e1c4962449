-- One row per campaign and household it was sent to.
with

recipients as (
    select * from {{ ref('stg_marketing__campaign_recipients') }}
),

campaigns as (
    select * from {{ ref('dim_campaign') }}
),

households as (
    select * from {{ ref('dim_household') }}
),

contacts as (
    select
        coalesce(campaigns.campaign_key, {{ unknown_key() }}) as campaign_key,
        recipients.campaign_id,
        recipients.household_id,
        -- Of a campaign marketing does not list, the day it told us of the recipient.
        coalesce(campaigns.start_date, cast(recipients.updated_at as date))
            as contacted_date
    from recipients
    left join campaigns on recipients.campaign_id = campaigns.campaign_id
),

final as (
    select
        contacts.campaign_key,
        coalesce(households.household_key, {{ unknown_household_key() }})
            as household_key,
        contacts.campaign_id,
        contacts.household_id,
        contacts.contacted_date
    from contacts
    left join households
        on
            contacts.household_id = households.household_id
            and {{ is_version_at('households', 'contacts.contacted_date') }}
)

select * from final
