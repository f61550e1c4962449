-- One row per contact and day on which it handed in coupons.
select
    visit_id,
    contact_id,
    _dlt_id as visit_row_id,
    visited_on as visited_date,
    updated_at,
    _loaded_at as loaded_at
from {{ source('crm', 'visits') }}
