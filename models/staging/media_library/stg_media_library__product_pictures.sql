-- One row per picture of a product. The file's name is the product's number.
select
    cast(split_part(split_part(path, '/', 2), '.', 1) as bigint) as product_id,
    path as picture_path,
    media_type,
    width as width_pixels,
    height as height_pixels,
    bytes as size_bytes,
    sha256,
    tags,
    extension_matches,
    modified_at,
    _loaded_at as loaded_at
from {{ source('media_library', 'product_pictures') }}
