-- One row per sign-up.
with

sign_ups as (
    select * from {{ ref('stg_sign_ups__sign_ups') }}
),

sign_ups_deduped as (
    {{ first_copies('sign_ups', ['sign_up_id']) }}
),

final as (
    select
        sign_up_id,
        household_id,
        email,
        city,
        sign_up_channel,
        occurred_at,
        loaded_at
    from sign_ups_deduped
)

select * from final
