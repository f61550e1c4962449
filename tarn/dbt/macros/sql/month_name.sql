{#- The English name of a date's month in full, as 'January'. Spark's own monthname() cuts it. -#}
{% macro month_name(day) -%}
    {{- adapter.dispatch('month_name')(day) -}}
{%- endmacro %}

{% macro duckdb__month_name(day) -%}
    monthname({{ day }})
{%- endmacro %}

{% macro spark__month_name(day) -%}
    date_format({{ day }}, 'MMMM')
{%- endmacro %}
