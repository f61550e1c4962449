select
    visited_on,
    count(*) as visits
from {{ source('desk', 'visits') }}
group by visited_on
