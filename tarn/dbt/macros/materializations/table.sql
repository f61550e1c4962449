{#- `table` with `file_format: delta`: the whole Delta table is replaced in one commit. -#}
{% materialization table, adapter='duckdb', supported_languages=['sql', 'python'] %}
    {%- if not in_lake() -%}
        {%- do leave_lake() -%}
        {{- return(dbt.materialization_table_duckdb()) -}}
    {%- endif -%}
    {%- do refuse_python() -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {%- do lake_write(contracted(sql), 'replace') -%}
    {%- do apply_grants(this, config.get('grants')) -%}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {%- do adapter.commit() -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}

    {{- return({'relations': [this.incorporate(type='view')]}) -}}
{% endmaterialization %}


{% macro refuse_python() -%}
    {%- if model.language != 'sql' -%}
        {%- do exceptions.raise_compiler_error(
            'A Delta table is made by SQL; a Python model needs file_format: none'
        ) -%}
    {%- endif -%}
{%- endmacro %}
