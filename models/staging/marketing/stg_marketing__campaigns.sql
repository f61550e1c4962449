-- One row per campaign.
select
    campaign_id,
    trim(campaign_type) as campaign_type,
    cast(start_date as date) as start_date,
    cast(end_date as date) as end_date,
    updated_at,
    _loaded_at as loaded_at
from {{ source('marketing', 'campaigns') }}
