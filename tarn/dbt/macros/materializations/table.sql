{#- `table` with `file_format: delta`: the whole Delta table is replaced in one commit. -#}
{% materialization table, adapter='duckdb', supported_languages=['sql', 'python'] %}
    {%- if not in_lake() -%}
        {%- do leave_lake() -%}
        {{- return(dbt.materialization_table_duckdb()) -}}
    {%- endif -%}

    {% call between_hooks() %}
        {%- do lake_write(model_query(), 'replace') -%}
    {% endcall %}

    {{- return({'relations': [this.incorporate(type='table')]}) -}}
{% endmaterialization %}
