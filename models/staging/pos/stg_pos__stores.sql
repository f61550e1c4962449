-- One row per store.
select
    store_id,
    trim(store_code) as store_code,
    updated_at,
    _loaded_at as loaded_at
from {{ source('pos', 'stores') }}
