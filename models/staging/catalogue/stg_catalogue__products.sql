-- One row per product of the current range. The file is text throughout.
select
    cast(product_id as bigint) as product_id,
    cast(manufacturer_id as bigint) as manufacturer_id,
    trim(department) as department,
    trim(brand) as brand,
    trim(product_category) as product_category,
    trim(product_type) as product_type,
    trim(package_size) as package_size,
    _loaded_at as loaded_at
from {{ source('catalogue', 'products') }}
