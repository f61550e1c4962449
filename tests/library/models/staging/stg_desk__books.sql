select
    book_id,
    title,
    shelf,
    updated_at
from {{ source('desk', 'books') }}
