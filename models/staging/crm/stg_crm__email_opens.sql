-- One row per campaign e-mail that a contact opened.
select
    open_id,
    contact_id,
    campaign_id,
    device,
    opened_at,
    updated_at,
    _loaded_at as loaded_at
from {{ source('crm', 'email_opens') }}
