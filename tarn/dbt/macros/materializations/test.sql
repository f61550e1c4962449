{#- Stored failures are a Delta table too: DuckDB's memory would forget them. No release has it. -#}
{% materialization test, adapter='duckdb' %}
    {%- if not (
        should_store_failures()
        and config.get('store_failures_as') in (none, 'table')
        and config.get('file_format', 'delta') == 'delta'
        and not is_rehearsal()
    ) -%}
        {{- return(dbt.materialization_test_default()) -}}
    {%- endif -%}

    {#- DuckDB gives columns of one name names of their own in a subquery only. -#}
    {%- set failures = get_limit_subquery_sql(sql, config.get('limit')) -%}
    {%- do lake_write('select * from (' ~ failures ~ ') as failures', 'replace') -%}
    {%- do adapter.commit() -%}
    {% call statement('main', fetch_result=True) -%}
        {{ get_test_sql(
            'select * from ' ~ this,
            config.get('fail_calc'),
            config.get('warn_if'),
            config.get('error_if'),
            none,
        ) }}
    {%- endcall %}

    {{- return({'relations': [this.incorporate(type='table')]}) -}}
{% endmaterialization %}
