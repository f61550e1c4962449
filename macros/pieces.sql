{#- Quantity where it counts pieces, else null: that of fuel is in thousandths of a gallon. -#}
{% macro pieces(quantity) -%}
    cast(case when {{ quantity }} between 1 and 99 then {{ quantity }} end as integer)
{%- endmacro %}
