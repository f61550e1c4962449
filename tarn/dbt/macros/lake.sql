{#- The bridge from dbt to the lake. Each macro here asks the plugin in tarn/dbt/plugin.py. -#}

{% macro lake_request(operation, relation, request) -%}
    {%- do request.update({'operation': operation}) -%}
    {%- do adapter.store_relation('tarn', relation, [], '', 'delta', request) -%}
    {{- return(request['result']) -}}
{%- endmacro %}


{#- Whether this node's rows live in the lake. Rehearsals (--empty, --sample) never touch it. -#}
{% macro in_lake() -%}
    {{- return(config.get('file_format') == 'delta' and not flags.EMPTY and not flags.SAMPLE) -}}
{%- endmacro %}


{#- In a rehearsal the table's view makes room for the throw-away table in DuckDB's memory. -#}
{% macro leave_lake() -%}
    {%- if config.get('file_format') == 'delta' -%}
        {%- do drop_relation_if_exists(load_cached_relation(this)) -%}
    {%- endif -%}
{%- endmacro %}


{#- Write the rows of a query to this node's table, and record the outcome as dbt expects. -#}
{% macro lake_write(sql, mode, options={}) -%}
    {%- set columns = model.columns.values() -%}
    {%- set docs = config.get('persist_docs', {}) -%}
    {%- set comments = {} -%}
    {%- if docs.get('columns') -%}
        {%- for column in columns if column.description -%}
            {%- do comments.update({column.name: column.description}) -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set request = {
        'sql': sql,
        'mode': mode,
        'partition_by': [config.get('partition_by')] if config.get('partition_by') is string
            else config.get('partition_by', []),
        'not_null': not_null_columns(columns),
        'comments': comments,
        'description': model.description if docs.get('relation') else none,
        'properties': {'tarn.model': model.unique_id, 'tarn.invocation': invocation_id},
    } -%}
    {%- do request.update(options) -%}
    {%- do adapter.ensure_transaction() -%}
    {%- set rows = lake_request('write', this, request) -%}
    {%- call noop_statement('main', 'DELTA ' ~ rows, 'DELTA', rows) -%}{{ sql }}{%- endcall -%}
{%- endmacro %}


{#- What a materialization does, in the transaction between its hooks. -#}
{% macro between_hooks() -%}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {{ caller() }}
    {%- do apply_grants(this, config.get('grants')) -%}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {%- do adapter.commit() -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
{%- endmacro %}


{#- Columns whose contract has a not_null constraint. -#}
{% macro not_null_columns(columns) -%}
    {%- set found = [] -%}
    {%- if config.get('contract').enforced -%}
        {%- for column in columns -%}
            {%- if column.constraints | selectattr('type', 'equalto', 'not_null') | list -%}
                {%- do found.append(column.name) -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- return(found) -}}
{%- endmacro %}


{#- The model's query with its contract checked and its columns in the contract's order. -#}
{% macro contracted(sql) -%}
    {%- if config.get('sql_header') -%}
        {%- do run_query(config.get('sql_header')) -%}
    {%- endif -%}
    {%- if config.get('contract').enforced -%}
        {%- do get_assert_columns_equivalent(sql) -%}
        {{- return(get_select_subquery(sql)) -}}
    {%- endif -%}
    {{- return(sql) -}}
{%- endmacro %}


{#- The query of each view is kept in the lake, so that the next DuckDB can show it. -#}
{% macro duckdb__create_view_as(relation, sql) -%}
    {%- if model.resource_type == 'model' and not flags.EMPTY and not flags.SAMPLE -%}
        {%- do lake_request('remember_view', this, {'sql': sql}) -%}
    {%- endif -%}
    {{- default__create_view_as(relation, sql) -}}
{%- endmacro %}


{#- A registered Delta table is a view to DuckDB, so existence alone decides. -#}
{% macro is_incremental() -%}
    {%- if not execute -%}
        {{- return(false) -}}
    {%- endif -%}
    {%- set existing = load_cached_relation(this) -%}
    {{- return(
        existing is not none
        and model.config.materialized == 'incremental'
        and (in_lake() or existing.type == 'table')
        and not should_full_refresh()
    ) -}}
{%- endmacro %}


{#- on-run-end: publish a release when `dbt build` ended green. -#}
{% macro publish_release(results) -%}
    {%- if execute and target.type == 'duckdb' -%}
        {%- set request = {
            'command': flags.WHICH,
            'rehearsal': true if flags.EMPTY or flags.SAMPLE else false,
            'invocation': invocation_id,
            'results': results,
            'nodes': graph.nodes,
            'sources': graph.sources,
        } -%}
        {%- set said = lake_request('publish', none, request) -%}
        {%- if said -%}
            {%- do log(said, info=true) -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}
