-- One row per sign-up.
{{ config(
    materialized='incremental',
    incremental_strategy='merge',
    unique_key=['signed_up_date', 'sign_up_id'],
    partition_by='signed_up_date',
    on_schema_change='fail'
) }}

{% set landed_sign_ups = ref('stg_sign_ups__sign_ups') %}
{% if is_incremental() %}
    {% set loaded_since = loaded_until(this) %}
    {% set first_occurred_at = happened_since([
        'select min(occurred_at) from ' ~ landed_sign_ups
        ~ ' where loaded_at >= ' ~ loaded_since,
    ]) %}
{% endif %}

with

-- The copy that came first stays, so it is looked for among all of that time.
sign_ups as (
    select * from {{ ref('int_sign_ups_deduped') }}
    {% if is_incremental() %}
        where
            occurred_at >= {{ first_occurred_at }}
            and loaded_at >= {{ loaded_since }}
    {% endif %}
),

final as (
    select
        sign_up_id,
        household_id,
        cast(occurred_at as date) as signed_up_date,
        city,
        sign_up_channel,
        household_id is not null as is_known_household,
        occurred_at as signed_up_at,
        loaded_at
    from sign_ups
)

select * from final
