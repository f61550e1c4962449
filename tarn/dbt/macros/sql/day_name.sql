{#- The English name of a date's day in full, as 'Monday'. Spark's own dayname() cuts it. -#}
{% macro day_name(day) -%}
    {{- adapter.dispatch('day_name')(day) -}}
{%- endmacro %}

{% macro duckdb__day_name(day) -%}
    dayname({{ day }})
{%- endmacro %}

{% macro spark__day_name(day) -%}
    date_format({{ day }}, 'EEEE')
{%- endmacro %}
