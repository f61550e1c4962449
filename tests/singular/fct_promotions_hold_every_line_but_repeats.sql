-- Guards the incremental build: of each week, the promotion files tell of as many
-- different pairs of product and store as there are promotions.
with

lines as (
    select
        retail_week,
        sum(member_count) as promotion_count
    from (
        {{ members_counted(
            ref('stg_catalogue__promotions'), ['retail_week', 'product_id'], 'store_id'
        ) }}
    ) as stores_counted
    group by retail_week
),

promotions as (
    select
        retail_week,
        count(*) as promotion_count
    from {{ ref('fct_promotions') }}
    group by retail_week
)

select
    coalesce(lines.retail_week, promotions.retail_week) as retail_week,
    lines.promotion_count as promotion_count_of_files,
    promotions.promotion_count as promotion_count_of_marts
from lines
full outer join promotions on lines.retail_week = promotions.retail_week
where coalesce(lines.promotion_count, 0) != coalesce(promotions.promotion_count, 0)
