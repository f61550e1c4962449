{#- One row per so many minutes from `first` to `last`. Alone in a select list. -#}
{% macro times_between(first, last, minutes=1) -%}
    {{- adapter.dispatch('times_between')(first, last, minutes) -}}
{%- endmacro %}

{% macro duckdb__times_between(first, last, minutes) -%}
    unnest(generate_series({{ first }}, {{ last }}, interval {{ minutes }} minute))
{%- endmacro %}

{% macro spark__times_between(first, last, minutes) -%}
    explode(sequence({{ first }}, {{ last }}, interval {{ minutes }} minute))
{%- endmacro %}
