{#- `seed` with `file_format: delta`: the file's rows replace the Delta table in one commit. -#}
{% materialization seed, adapter='duckdb' %}
    {%- if not in_lake() -%}
        {%- do leave_lake() -%}
        {{- return(dbt.materialization_seed_default()) -}}
    {%- endif -%}
    {%- set rows = load_agate_table() -%}
    {%- do store_result('agate_table', response='OK', agate_table=rows) -%}

    {% call between_hooks() %}
        {%- do lake_write(seed_query(rows), 'replace', {'file': seed_file()}) -%}
    {% endcall %}

    {{- return({'relations': [this.incorporate(type='table')]}) -}}
{% endmaterialization %}


{#- What the seed's rows are made of; none for a file so large that dbt does not read it. -#}
{% macro seed_file() -%}
    {%- set checksum = graph.nodes[model.unique_id].checksum -%}
    {%- if checksum.name != 'path' -%}
        {{- return([checksum.checksum, model.config.column_types, config.get('delimiter')]) -}}
    {%- endif -%}
{%- endmacro %}


{#- A query over the seed's file, each column in its declared type, else in the one dbt infers. -#}
{% macro seed_query(rows) -%}
    {%- set types = model['config'].get('column_types', {}) -%}
    select
    {%- for name in rows.column_names %}
        {%- set type = types.get(name, adapter.convert_type(rows, loop.index0)) %}
        cast({{ adapter.quote(name) }} as {{ type }}) as {{ adapter.quote(name) }}
        {{- ',' if not loop.last }}
    {%- endfor %}
    from read_csv(
        '{{ adapter.escape_sql_string(adapter.get_seed_file_path(model)) }}',
        header = true,
        all_varchar = true,
        delim = '{{ config.get("delimiter", ",") }}'
    )
{%- endmacro %}
