-- One row per household with a loyalty card.
select
    household_id,
    joined_at,
    updated_at,
    _loaded_at as loaded_at
from {{ source('pos', 'households') }}
