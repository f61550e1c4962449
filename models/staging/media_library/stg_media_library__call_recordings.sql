-- One row per recorded call, told by its file: 2017-03-14T10-00-00Z_household_12.wav.
with

recordings as (
    select
        *,
        split_part(split_part(path, '/', 2), '.', 1) as file_name
    from {{ source('media_library', 'call_recordings') }}
)

select
    cast(split_part(file_name, '_', 3) as bigint) as household_id,
    path as recording_path,
    media_type,
    duration_seconds,
    bytes as size_bytes,
    sha256,
    tags,
    extension_matches,
    is_gone,
    cast(
        substr(file_name, 1, 10) || ' ' || replace(substr(file_name, 12, 8), '-', ':')
        as timestamp
    ) as called_at,
    modified_at,
    _loaded_at as loaded_at
from recordings
