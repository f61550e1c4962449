-- One row per sign-up as it came: one that was sent twice may be there twice.
select
    sign_up_id,
    household_id,
    lower(trim(email)) as email,
    trim(city) as city,
    channel as sign_up_channel,
    occurred_at,
    _partition as stream_partition,
    _offset as stream_offset,
    _sent_at as sent_at,
    _loaded_at as loaded_at
from {{ source('sign_ups', 'sign_ups') }}
