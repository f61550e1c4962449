{#- What a household pays against everybody's price for the same product types, as a band. -#}
{% macro price_band(price_index) -%}
    case
        when {{ price_index }} < 0.9 then 'low'
        when {{ price_index }} > 1.1 then 'high'
        when {{ price_index }} is not null then 'mid'
    end
{%- endmacro %}
