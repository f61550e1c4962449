{{ config(materialized='incremental', incremental_strategy='merge', unique_key='loan_id') }}

select
    loan_id,
    book_id,
    branch,
    lent_on,
    returned_on,
    loaded_at
from {{ ref('stg_desk__loans') }}
{% if is_incremental() %}
    where loaded_at >= (select coalesce(max(loaded_at), timestamp '1900-01-01') from {{ this }})
{% endif %}
