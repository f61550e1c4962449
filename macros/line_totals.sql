{% macro line_totals(relation, by) -%}
    select
        {{ by | join(', ') }},
        count(*) as line_count,
        sum(quantity) as quantity,
        sum(sales_amount) as sales_amount,
        sum(
            retail_discount_amount
            + coupon_discount_amount
            + coupon_match_discount_amount
        ) as discount_amount
    from {{ relation }}
    group by {{ by | join(', ') }}
{%- endmacro %}
