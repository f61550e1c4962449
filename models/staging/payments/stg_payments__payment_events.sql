-- One row per payment and status as it came: one that was sent twice may be there
-- twice.
select
    payment_id,
    order_id,
    household_id,
    status as payment_status,
    method as payment_method,
    reason as payment_reason,
    currency,
    cast(amount as decimal(12, 2)) as payment_amount,
    place__latitude as payment_latitude,
    place__longitude as payment_longitude,
    occurred_at,
    _partition as stream_partition,
    _offset as stream_offset,
    _sent_at as sent_at,
    _loaded_at as loaded_at
from {{ source('payments', 'payments') }}
