select
    loan_id,
    book_id,
    branch,
    lent_on,
    returned_on,
    _loaded_at as loaded_at
from {{ source('desk', 'loans') }}
