{#- The last and the first value that a group has in some order, nulls left out: without saying
    so DuckDB leaves them out and Spark does not. -#}
{% macro last_known(value, ordered_by) -%}
    max_by({{ value }}, {{ ordered_by }}) filter (where {{ value }} is not null)
{%- endmacro %}

{% macro first_known(value, ordered_by) -%}
    min_by({{ value }}, {{ ordered_by }}) filter (where {{ value }} is not null)
{%- endmacro %}
