{#- Whether a version (valid_from, valid_to) of a dimension's row was the valid one then.
    Comparisons only: an `or` makes DuckDB compare each pair of rows in a left join. -#}
{% macro is_version_at(versions, moment) -%}
    {{ moment }} >= {{ versions }}.valid_from
    and {{ moment }}
    < coalesce({{ versions }}.valid_to, cast('9999-12-31 00:00:00' as timestamp))
{%- endmacro %}
