-- One row per campaign, and the unknown member.
with

listed_campaigns as (
    select * from {{ ref('stg_marketing__campaigns') }}
),

campaigns as (
    select
        campaign_id as campaign_key,
        campaign_id,
        {{ or_unknown('campaign_type') }} as campaign_type,
        start_date,
        end_date,
        cast({{ dbt.datediff('start_date', 'end_date', 'day') }} + 1 as bigint)
            as duration_days
    from listed_campaigns
),

unknown_member as (
    select
        {{ unknown_key() }} as campaign_key,
        cast(null as bigint) as campaign_id,
        {{ unknown_text() }} as campaign_type,
        cast(null as date) as start_date,
        cast(null as date) as end_date,
        cast(null as bigint) as duration_days
),

final as (
    select * from campaigns
    union all
    select * from unknown_member
)

select * from final
