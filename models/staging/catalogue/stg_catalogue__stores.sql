-- One row per store.
select
    store_id,
    trim(store_name) as store_name,
    trim(store_format) as store_format,
    trim(time_zone) as time_zone,
    _loaded_at as loaded_at
from {{ source('catalogue', 'stores') }}
