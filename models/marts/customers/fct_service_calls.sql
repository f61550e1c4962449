-- One row per recorded service call.
with

recordings as (
    select * from {{ ref('stg_media_library__call_recordings') }}
),

households as (
    select * from {{ ref('dim_household') }}
),

final as (
    select
        recordings.recording_path,
        coalesce(households.household_key, {{ unknown_household_key() }})
            as household_key,
        recordings.household_id,
        cast(recordings.called_at as date) as called_date,
        not recordings.is_gone as has_recording,
        recordings.duration_seconds,
        recordings.called_at
    from recordings
    left join households
        on
            recordings.household_id = households.household_id
            and {{ is_version_at('households', 'cast(recordings.called_at as date)') }}
)

select * from final
