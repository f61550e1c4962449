-- One row per step of an order as it came: one that was sent twice may be there twice.
select
    event_id as order_event_id,
    order_id,
    household_id,
    store_id,
    van_id,
    event_type,
    item_count,
    cast(amount as decimal(12, 2)) as order_amount,
    delivery__latitude as delivery_latitude,
    delivery__longitude as delivery_longitude,
    promised_at,
    occurred_at,
    _partition as stream_partition,
    _offset as stream_offset,
    _sent_at as sent_at,
    _loaded_at as loaded_at
from {{ source('web_shop', 'orders') }}
