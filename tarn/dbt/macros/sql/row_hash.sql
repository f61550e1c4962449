{#- One text that changes when any of `columns` does; null differs from the empty text. -#}
{% macro row_hash(columns) -%}
    md5(concat(
        {%- for column in columns %}
        coalesce('=' || cast({{ column }} as {{ dbt.type_string() }}), ''), '|'
        {{- ',' if not loop.last }}
        {%- endfor %}
    ))
{%- endmacro %}
