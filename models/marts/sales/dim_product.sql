-- One row per product that is or ever was in the catalogue, as it was described last,
-- and the unknown member.
with

product_versions as (
    select * from {{ ref('snap_products') }}
),

department_names as (
    select * from {{ ref('department_names') }}
),

pictures as (
    select * from {{ ref('stg_media_library__product_pictures') }}
),

versions_ranked as (
    select
        *,
        row_number() over (
            partition by product_id
            order by dbt_valid_from desc, dbt_scd_id desc
        ) as version_rank
    from product_versions
),

products as (
    select
        versions_ranked.product_id as product_key,
        versions_ranked.product_id,
        {{ or_unknown('versions_ranked.product_type') }} as product_type,
        {{ or_unknown('versions_ranked.product_category') }} as product_category,
        {{ or_unknown('versions_ranked.department') }} as department,
        department_names.department_name,
        {{ or_unknown('versions_ranked.brand') }} as brand,
        versions_ranked.manufacturer_id,
        {{ or_unknown('versions_ranked.package_size') }} as package_size,
        pictures.picture_path,
        coalesce(versions_ranked.brand = 'Private', false) as is_private_label,
        versions_ranked.dbt_valid_to is null as is_in_catalogue,
        pictures.picture_path is not null as has_picture
    from versions_ranked
    left join department_names
        on versions_ranked.department = department_names.department
    left join pictures on versions_ranked.product_id = pictures.product_id
    where versions_ranked.version_rank = 1
),

unknown_member as (
    select
        {{ unknown_key() }} as product_key,
        cast(null as bigint) as product_id,
        {{ unknown_text() }} as product_type,
        {{ unknown_text() }} as product_category,
        {{ unknown_text() }} as department,
        {{ unknown_text() }} as department_name,
        {{ unknown_text() }} as brand,
        cast(null as bigint) as manufacturer_id,
        {{ unknown_text() }} as package_size,
        cast(null as {{ dbt.type_string() }}) as picture_path,
        false as is_private_label,
        false as is_in_catalogue,
        false as has_picture
),

final as (
    select * from products
    union all
    select * from unknown_member
)

select * from final
