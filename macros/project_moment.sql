{#- The moment the business stands at, UTC. A past year has none of its own: there it is the
    later of the day of the variable `today` and the last event. -#}
{% macro project_moment(last_event) -%}
    {%- if var('today') == 'now' -%} {{ utc_now() }}
    {%- else -%} greatest(cast({{ today() }} as timestamp), {{ last_event }})
    {%- endif -%}
{%- endmacro %}
