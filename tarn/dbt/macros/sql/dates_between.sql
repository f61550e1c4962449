{#- One row per day from `first` to `last`. Alone in a select list; cast what it gives. -#}
{% macro dates_between(first, last) -%}
    {{- adapter.dispatch('dates_between')(first, last) -}}
{%- endmacro %}

{% macro duckdb__dates_between(first, last) -%}
    unnest(generate_series({{ first }}, {{ last }}, interval 1 day))
{%- endmacro %}

{% macro spark__dates_between(first, last) -%}
    explode(sequence({{ first }}, {{ last }}, interval 1 day))
{%- endmacro %}
