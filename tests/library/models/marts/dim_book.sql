select
    dbt_scd_id as book_key,
    book_id,
    title,
    shelf,
    dbt_valid_from as valid_from,
    dbt_valid_to as valid_to
from {{ ref('snap_books') }}
