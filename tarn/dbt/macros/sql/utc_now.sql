{#- This moment in UTC, without a zone, whatever zone the session has. -#}
{% macro utc_now() -%}
    {{- adapter.dispatch('utc_now')() -}}
{%- endmacro %}

{% macro duckdb__utc_now() -%}
    timezone('UTC', current_timestamp)
{%- endmacro %}

{% macro spark__utc_now() -%}
    convert_timezone('UTC', localtimestamp())
{%- endmacro %}
