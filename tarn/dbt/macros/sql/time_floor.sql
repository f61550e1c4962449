{#- The last full quarter, say, of an hour at or before a moment: by so many minutes of a day. -#}
{% macro time_floor(moment, minutes) -%}
    (
        date_trunc('hour', {{ moment }})
        + interval 1 minute * cast(
            floor(extract(minute from {{ moment }}) / {{ minutes }}) * {{ minutes }} as int
        )
    )
{%- endmacro %}
