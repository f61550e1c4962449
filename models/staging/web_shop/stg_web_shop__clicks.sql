-- One row per click as it came: one that the shop sent twice may be there twice.
select
    event_id as click_id,
    visitor_id,
    household_id,
    order_id,
    page__type as page_type,
    page__product_id as product_id,
    page__department as department,
    referrer,
    device,
    occurred_at,
    _partition as stream_partition,
    _offset as stream_offset,
    _sent_at as sent_at,
    _loaded_at as loaded_at
from {{ source('web_shop', 'clicks') }}
