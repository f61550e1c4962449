-- One row per lead.
select
    lead_id,
    household_id,
    channel as lead_channel,
    status as lead_status,
    created_at,
    closed_at,
    updated_at,
    _loaded_at as loaded_at
from {{ source('crm', 'leads') }}
