-- One row per day and hashtag.
select
    hashtag,
    day as trend_date,
    rank as trend_rank,
    topic as product_category,
    mentions as mention_count,
    usual_mentions as usual_mention_count,
    _loaded_at as loaded_at
from {{ source('trends', 'hashtags') }}
