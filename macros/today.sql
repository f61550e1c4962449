{#- The day the business stands at: var `today`; the word `now` means the real today. -#}
{% macro today() -%}
    {%- if var('today') == 'now' -%} current_date
    {%- else -%} cast('{{ var("today") }}' as date)
    {%- endif -%}
{%- endmacro %}
