-- One row per receipt that a till rang up for the web shop.
-- A view, as what it is held against is one.
{{ config(materialized='view') }}

with

web_receipts as (
    select * from {{ ref('stg_pos__web_receipts') }}
),

final as (
    select
        basket_id,
        order_id,
        rung_up_at,
        loaded_at
    from web_receipts
)

select * from final
