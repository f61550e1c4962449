-- Guards questions such as "what did people with kids buy then": a line names the
-- version of its household that was valid when it was sold.
select
    sales.basket_id,
    sales.line_number,
    sales.household_id,
    sales.sold_at,
    households.valid_from,
    households.valid_to
from {{ ref('fct_sales') }} as sales
inner join {{ ref('dim_household') }} as households
    on sales.household_key = households.household_key
where
    sales.household_id != households.household_id
    or not ({{ is_version_at('households', 'sales.sold_at') }})
