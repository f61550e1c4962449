-- Guards facts from finding no version of their household, or two: versions of each
-- household of the tills begin in 1900, follow one another, and the last is the
-- current.
with

versions as (
    select
        household_id,
        valid_from,
        valid_to,
        is_current,
        lag(valid_to) over (
            partition by household_id
            order by valid_from asc
        ) as previous_valid_to,
        row_number() over (
            partition by household_id
            order by valid_from asc
        ) as version_number,
        count(*) over (partition by household_id) as version_count
    from {{ ref('dim_household') }}
    where household_id is not null
)

select
    coalesce(households.household_id, versions.household_id) as household_id,
    versions.version_number,
    versions.valid_from,
    versions.valid_to
from {{ ref('stg_pos__households') }} as households
full outer join versions on households.household_id = versions.household_id
where
    households.household_id is null
    or versions.household_id is null
    or (
        versions.version_number = 1
        and versions.valid_from != cast('1900-01-01 00:00:00' as timestamp)
    )
    or (
        versions.version_number > 1
        and coalesce(versions.previous_valid_to != versions.valid_from, true)
    )
    or versions.is_current != (versions.version_number = versions.version_count)
    or versions.is_current != (versions.valid_to is null)
