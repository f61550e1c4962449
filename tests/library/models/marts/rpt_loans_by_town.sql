select
    branches.town,
    books.shelf,
    count(*) as loans,
    count(*) filter (where loans.returned_on is null) as still_out
from {{ ref('fct_loans') }} as loans
inner join {{ ref('branches') }} as branches on loans.branch = branches.branch
inner join {{ ref('dim_book') }} as books
    on loans.book_id = books.book_id and books.valid_to is null
group by branches.town, books.shelf
