{#- To dbt a Delta table is a table, though DuckDB shows it by a view. -#}
{% macro duckdb__list_relations_without_caching(schema_relation) -%}
    {#- The plugin is there once DuckDB is open, which the first query of a process sees to. -#}
    {%- do run_query('select 1') -%}
    {%- set tables = [] -%}
    {%- for name in lake_request('tables', none, {}) -%}
        {%- do tables.append("'" ~ adapter.escape_sql_string(name) ~ "'") -%}
    {%- endfor -%}
    {%- call statement('list_relations_without_caching', fetch_result=True) -%}
        select
            '{{ schema_relation.database }}' as database,
            table_name as name,
            table_schema as schema,
            case
                when table_type <> 'VIEW' then 'table'
                {%- if tables %}
                when table_schema || '.' || table_name in ({{ tables | join(', ') }}) then 'table'
                {%- endif %}
                else 'view'
            end as type
        from system.information_schema.tables
        where
            lower(table_schema) = '{{ schema_relation.schema | lower }}'
            and lower(table_catalog) = '{{ schema_relation.database | lower }}'
    {%- endcall -%}
    {{- return(load_result('list_relations_without_caching').table) -}}
{%- endmacro %}


{#- What DuckDB calls a relation, by which it is dropped and renamed. -#}
{% macro stored_as(relation) -%}
    {%- if not relation.schema -%}
        {{- return('table') -}}
    {%- endif -%}
    {%- set query -%}
        select 1
        from duckdb_views()
        where
            lower(schema_name) = '{{ relation.schema | lower }}'
            and lower(view_name) = '{{ relation.identifier | lower }}'
    {%- endset -%}
    {{- return('view' if run_query(query).rows | length else 'table') -}}
{%- endmacro %}


{#- A Delta table stays in the lake, where releases may need it; only this DuckDB forgets it. -#}
{% macro duckdb__drop_relation(relation) -%}
    {%- set stored = stored_as(relation) -%}
    {%- if relation.is_view and stored == 'view' and not is_rehearsal() -%}
        {%- do lake_request('forget_view', relation, {}) -%}
    {%- endif -%}
    {%- call statement('drop_relation', auto_begin=False) -%}
        drop {{ stored }} if exists {{ relation }} cascade
    {%- endcall -%}
{%- endmacro %}


{% macro duckdb__rename_relation(from_relation, to_relation) -%}
    {%- set stored = stored_as(from_relation) -%}
    {%- call statement('rename_relation') -%}
        alter {{ stored }} {{ from_relation }} rename to {{ adapter.quote(to_relation.identifier) }}
    {%- endcall -%}
{%- endmacro %}
