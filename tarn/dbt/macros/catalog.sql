{#- dbt's documentation: to DuckDB a Delta table is a view; readers want its rows and size. -#}
{% macro duckdb__get_catalog(information_schema, schemas) -%}
    {{- return(lake_catalog(
        information_schema, duckdb__get_catalog_schemas_where_clause_sql(schemas)
    )) -}}
{%- endmacro %}


{% macro duckdb__get_catalog_relations(information_schema, relations) -%}
    {{- return(lake_catalog(
        information_schema, duckdb__get_catalog_relations_where_clause_sql(relations)
    )) -}}
{%- endmacro %}


{% macro lake_catalog(information_schema, condition) -%}
    {%- do run_query(
        'create or replace temp table lake_tables (table_schema varchar, table_name varchar,'
        ~ ' description varchar, version bigint, row_count bigint, bytes bigint, files bigint)'
    ) -%}
    {%- do run_query(
        'create or replace temp table lake_comments (table_schema varchar, table_name varchar,'
        ~ ' column_name varchar, comment varchar)'
    ) -%}
    {%- do lake_request('measure_tables', none, {}) -%}
    {%- set stats = [
        ('rows', 'Rows', 'Rows in the table', 'lake.row_count'),
        ('bytes', 'Size', 'Bytes of the Delta table as it is now', 'lake.bytes'),
        ('files', 'Files', 'Parquet files it consists of', 'lake.files'),
        ('version', 'Delta version', 'Number of its last commit', 'lake.version'),
    ] -%}
    {%- set query -%}
        with tables as ({{ duckdb__get_catalog_tables_sql(information_schema) }} {{ condition }}),
        columns as ({{ duckdb__get_catalog_columns_sql(information_schema) }} {{ condition }})
        select
            tables.table_database,
            tables.table_schema,
            tables.table_name,
            if(lake.version is null, tables.table_type, 'Delta table') as table_type,
            coalesce(tables.table_comment, lake.description) as table_comment,
            columns.column_name,
            columns.column_index,
            columns.column_type,
            coalesce(columns.column_comment, said.comment) as column_comment,
            null as table_owner,
            {%- for id, label, description, value in stats %}
            '{{ label }}' as "stats:{{ id }}:label",
            '{{ description }}' as "stats:{{ id }}:description",
            {{ value }} as "stats:{{ id }}:value",
            lake.version is not null as "stats:{{ id }}:include",
            {%- endfor %}
        from tables
        inner join columns using (table_database, table_schema, table_name)
        left join lake_tables as lake using (table_schema, table_name)
        left join lake_comments as said using (table_schema, table_name, column_name)
        order by tables.table_schema, tables.table_name, columns.column_index
    {%- endset -%}
    {{- return(run_query(query)) -}}
{%- endmacro %}
