-- One row per contact.
select
    contact_id,
    household_id,
    email as email_address,
    consent__email as has_email_consent,
    consent__post as has_post_consent,
    updated_at,
    _loaded_at as loaded_at
from {{ source('crm', 'contacts') }}
