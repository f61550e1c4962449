{#- The moment up to which a table has what was loaded, by one of its columns. Rows of that very
    moment are to be looked at again: some of a load may have come after it was read. -#}
{% macro loaded_until(relation, column='loaded_at') -%}
    {{- timestamp_found('select max(' ~ column ~ ') from ' ~ relation) -}}
{%- endmacro %}

{#- When the earliest of the events happened that were loaded since, or of what they belong to:
    queries for one moment each. -#}
{% macro happened_since(queries) -%}
    {%- set moments = [] -%}
    {%- for query in queries -%}
        {%- do moments.append('select (' ~ query ~ ') as moment') -%}
    {%- endfor -%}
    {{- timestamp_found(
        'select min(moment) from (' ~ moments | join(' union all ') ~ ') as moments'
    ) -}}
{%- endmacro %}
