-- One row per household and version of its demographics, and the unknown member.
-- The first version counts from 1900 on: what is first known is taken to hold before,
-- so that every sale finds a version and its key stays when demographics arrive.
with

households as (
    select * from {{ ref('stg_pos__households') }}
),

demographics as (
    select * from {{ ref('snap_household_demographics') }}
),

baskets as (
    select * from {{ ref('int_baskets_localised') }}
),

first_sales as (
    select
        household_id,
        min(sold_date) as first_sold_date
    from baskets
    group by household_id
),

demographics_numbered as (
    select
        *,
        -- A household that leaves the panel gets a version that says nothing.
        dbt_is_deleted = 'False' as has_demographics,
        row_number() over (
            partition by household_id
            order by dbt_valid_from asc, dbt_scd_id asc
        ) as version_number
    from demographics
),

demographics_told as (
    select * from demographics_numbered
    where has_demographics
),

household_versions as (
    select
        households.household_id,
        case
            when coalesce(versions.version_number, 1) > 1 then versions.dbt_valid_from
            else cast('1900-01-01 00:00:00' as timestamp)
        end as valid_from,
        versions.dbt_valid_to as valid_to,
        versions.dbt_scd_id
    from households
    left join demographics_numbered as versions
        on households.household_id = versions.household_id
),

known_households as (
    select
        md5(concat(
            cast(household_versions.household_id as string),
            '|',
            cast(household_versions.valid_from as string)
        )) as household_key,
        household_versions.household_id,
        {{ or_unknown('demographics_told.age_band') }} as age_band,
        {{ or_unknown('demographics_told.income_band') }} as income_band,
        {{ or_unknown('demographics_told.home_ownership') }} as home_ownership,
        {{ or_unknown('demographics_told.marital_status') }} as marital_status,
        {{ or_unknown('demographics_told.household_size') }} as household_size,
        {{ or_unknown('demographics_told.household_composition') }}
            as household_composition,
        {{ or_unknown('demographics_told.kids_count') }} as kids_count,
        demographics_told.household_id is not null as has_demographics,
        first_sales.first_sold_date,
        household_versions.valid_from,
        household_versions.valid_to,
        household_versions.valid_to is null as is_current
    from household_versions
    left join demographics_told
        on household_versions.dbt_scd_id = demographics_told.dbt_scd_id
    left join first_sales
        on household_versions.household_id = first_sales.household_id
),

unknown_member as (
    select
        {{ unknown_household_key() }} as household_key,
        cast(null as bigint) as household_id,
        {{ unknown_text() }} as age_band,
        {{ unknown_text() }} as income_band,
        {{ unknown_text() }} as home_ownership,
        {{ unknown_text() }} as marital_status,
        {{ unknown_text() }} as household_size,
        {{ unknown_text() }} as household_composition,
        {{ unknown_text() }} as kids_count,
        false as has_demographics,
        cast(null as date) as first_sold_date,
        cast('1900-01-01 00:00:00' as timestamp) as valid_from,
        cast(null as timestamp) as valid_to,
        true as is_current
),

final as (
    select * from known_households
    union all
    select * from unknown_member
)

select * from final
