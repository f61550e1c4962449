-- One row per campaign and household it was sent to.
select
    campaign_id,
    household_id,
    updated_at,
    _loaded_at as loaded_at
from {{ source('marketing', 'campaign_recipients') }}
