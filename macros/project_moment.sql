{#- The moment the business stands at, UTC. A past year has none of its own: there it is the
    later of the day of the variable `today` and the last event of some spans. The real one is
    known before a query reads a row, so that what it is compared with is read from there on. -#}
{% macro project_moment(spans) -%}
    {%- if var('today') == 'now' -%} {{ utc_now() }}
    {%- else -%}
        (
            select greatest(cast({{ today() }} as timestamp), max(spans.last_at))
            from {{ spans }} as spans
        )
    {%- endif -%}
{%- endmacro %}
