{#- `table` with `file_format: delta`: the whole Delta table is replaced in one commit. -#}
{% materialization table, adapter='duckdb', supported_languages=['sql', 'python'] %}
    {%- if not in_lake() -%}
        {%- do leave_lake() -%}
        {%- if model.language == 'python' -%}
            {#- dbt lets nobody but a materialization itself run Python. -#}
            {%- do drop_relation_if_exists(load_cached_relation(this)) -%}
            {%- do open_node() -%}
            {%- do adapter.ensure_transaction() -%}
            {%- call statement('main', language='python') -%}
                {{- py_write_table(False, this, compiled_code) -}}
            {%- endcall -%}
            {%- do close_node() -%}
            {{- return({'relations': [this.incorporate(type='table')]}) -}}
        {%- endif -%}
        {{- return(dbt.materialization_table_duckdb()) -}}
    {%- endif -%}

    {%- do open_node() -%}
    {%- set made = python_rows() -%}
    {%- if made -%}
        {#- dbt lets nobody but a materialization itself run Python. -#}
        {%- call statement('python', language='python') -%}
            {{- py_write_table(temporary=True, relation=made, compiled_code=compiled_code) -}}
        {%- endcall -%}
    {%- endif -%}
    {%- do lake_write(model_query(made), 'replace') -%}
    {%- do close_node() -%}

    {{- return({'relations': [this.incorporate(type='table')]}) -}}
{% endmaterialization %}
