{#- The wall clock of `zone` at `utc`, daylight saving included; both without a zone. -#}
{% macro local_time(utc, zone) -%}
    {{- adapter.dispatch('local_time')(utc, zone) -}}
{%- endmacro %}

{% macro duckdb__local_time(utc, zone) -%}
    timezone({{ zone }}, timezone('UTC', {{ utc }}))
{%- endmacro %}

{% macro spark__local_time(utc, zone) -%}
    convert_timezone('UTC', {{ zone }}, {{ utc }})
{%- endmacro %}
