-- Guards facts from losing a product's description: all the catalogue lists now is in
-- the dimension as it is listed, and nothing else counts as listed.
with

listed_products as (
    select * from {{ ref('dim_product') }}
    where is_in_catalogue
)

select
    coalesce(listed.product_id, products.product_id) as product_id,
    listed.product_type as product_type_of_catalogue,
    products.product_type
from {{ ref('stg_catalogue__products') }} as listed
full outer join listed_products as products
    on listed.product_id = products.product_id
where
    listed.product_id is null
    or products.product_id is null
    or coalesce(listed.product_type, {{ unknown_text() }}) != products.product_type
    or coalesce(listed.department, {{ unknown_text() }}) != products.department
    or coalesce(listed.brand, {{ unknown_text() }}) != products.brand
