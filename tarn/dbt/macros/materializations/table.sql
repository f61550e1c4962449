{#- `table` with `file_format: delta`: the whole Delta table is replaced in one commit. -#}
{% materialization table, adapter='duckdb', supported_languages=['sql', 'python'] %}
    {%- if not in_lake() -%}
        {%- do leave_lake() -%}
        {{- return(dbt.materialization_table_duckdb()) -}}
    {%- endif -%}
    {%- do refuse_python() -%}

    {% call between_hooks() %}
        {%- do lake_write(contracted(sql), 'replace') -%}
    {% endcall %}

    {{- return({'relations': [this.incorporate(type='view')]}) -}}
{% endmaterialization %}


{% macro refuse_python() -%}
    {%- if model.language != 'sql' -%}
        {%- do exceptions.raise_compiler_error(
            'A Delta table is made by SQL; a Python model needs file_format: none'
        ) -%}
    {%- endif -%}
{%- endmacro %}
