{#- Seconds from `first` to `last` with their fraction, negative where `last` is earlier. -#}
{% macro seconds_between(first, last) -%}
    {{- adapter.dispatch('seconds_between')(first, last) -}}
{%- endmacro %}

{% macro duckdb__seconds_between(first, last) -%}
    ((epoch_us({{ last }}) - epoch_us({{ first }})) / 1000000.0)
{%- endmacro %}

{% macro spark__seconds_between(first, last) -%}
    ((unix_micros(cast({{ last }} as timestamp_ltz))
        - unix_micros(cast({{ first }} as timestamp_ltz))) / cast(1000000 as double))
{%- endmacro %}
