{#- What a query for one timestamp gives just now, as a constant: by a constant an engine skips
    files, by a subquery it does not. The beginning of time where there is none. -#}
{% macro timestamp_found(query) -%}
    {%- set found = run_query(query) if execute -%}
    {%- set moment = found.rows[0][0] if found else none -%}
    cast('{{ moment or "1900-01-01 00:00:00" }}' as timestamp)
{%- endmacro %}
