{#- `seed` with `file_format: delta`: the file's rows replace the Delta table in one commit. -#}
{% materialization seed, adapter='duckdb' %}
    {%- if not in_lake() -%}
        {%- do leave_lake() -%}
        {{- return(dbt.materialization_seed_default()) -}}
    {%- endif -%}
    {%- set rows = load_agate_table() -%}
    {%- do store_result('agate_table', response='OK', agate_table=rows) -%}

    {%- do open_node() -%}
    {%- do lake_write(seed_query(rows), 'replace', {'file': seed_file()}) -%}
    {%- do close_node() -%}

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
        {%- do check_header(name) %}
        {%- set type = types.get(name, adapter.convert_type(rows, loop.index0)) %}
        {%- set value = adapter.quote(name) if name in types or type == 'text'
            else "nullif(" ~ adapter.quote(name) ~ ", 'null')" %}
        cast({{ value }} as {{ type }}) as {{ adapter.quote(name) }}
        {{- ',' if not loop.last }}
    {%- endfor %}
    from read_csv(
        '{{ adapter.escape_sql_string(adapter.get_seed_file_path(model)) }}',
        header = true,
        all_varchar = true,
        delim = '{{ config.get("delimiter", ",") }}'
    )
{%- endmacro %}


{#- `quote_columns: false` promises plain names; others tell of a wrong delimiter. -#}
{% macro check_header(name) -%}
    {%- if config.get('quote_columns') == false
        and not modules.re.fullmatch('[A-Za-z_][A-Za-z0-9_]*', name) -%}
        {%- do exceptions.raise_compiler_error(
            "Syntax error in the header of " ~ model.original_file_path ~ ": '" ~ name
            ~ "' is no plain name. Is the delimiter right? Else set quote_columns: true."
        ) -%}
    {%- endif -%}
{%- endmacro %}
