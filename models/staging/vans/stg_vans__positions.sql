-- One row per position that a van sent as it came: one sent twice may be there twice.
select
    van_id,
    sequence as van_sequence,
    order_id,
    latitude,
    longitude,
    speed_kmh,
    heading,
    occurred_at,
    _partition as stream_partition,
    _offset as stream_offset,
    _sent_at as sent_at,
    _loaded_at as loaded_at
from {{ source('vans', 'positions') }}
