-- Guards both sides of the reconciliation: each order that an event or a receipt names
-- is there, and every receipt is counted once.
with

named as (
    select order_id from {{ ref('fct_order_events') }}
    union
    select order_id from {{ ref('fct_web_receipts') }}
),

totals as (
    select
        (select count(*) from named) as orders_named,
        (select count(*) from {{ ref('fct_web_receipts') }}) as receipts,
        count(*) as orders_reported,
        coalesce(sum(receipt_count), 0) as receipts_reported
    from {{ ref('rpt_order_reconciliation') }}
)

select * from totals
where orders_named != orders_reported or receipts != receipts_reported
