{#- The bridge from dbt to the lake. Each macro here asks the plugin in tarn/dbt/plugin.py. -#}

{% macro lake_request(operation, relation, request) -%}
    {%- do request.update({'operation': operation}) -%}
    {%- do adapter.store_relation('tarn', relation, [], '', 'delta', request) -%}
    {{- return(request['result']) -}}
{%- endmacro %}


{#- Rehearsals (--empty, --sample) never touch the lake. -#}
{% macro is_rehearsal() -%}
    {{- return(true if flags.EMPTY or flags.SAMPLE else false) -}}
{%- endmacro %}


{#- Whether this node's rows live in the lake. -#}
{% macro in_lake() -%}
    {{- return(config.get('file_format') == 'delta' and not is_rehearsal()) -}}
{%- endmacro %}


{#- In a rehearsal the table's view makes room for the throw-away table in DuckDB's memory. -#}
{% macro leave_lake() -%}
    {%- if config.get('file_format') == 'delta' -%}
        {%- do drop_relation_if_exists(load_cached_relation(this)) -%}
    {%- endif -%}
{%- endmacro %}


{#- One name, or several, or none: always a list. -#}
{% macro listed(names) -%}
    {%- set names = [names] if names is string else names or [] -%}
    {{- return(names | select | unique | list) -}}
{%- endmacro %}


{#- Write the rows of a query to this node's table, and record the outcome as dbt expects. -#}
{% macro lake_write(sql, mode, options={}) -%}
    {%- set docs = config.get('persist_docs', {}) -%}
    {%- set request = {
        'sql': sql,
        'mode': mode,
        'graph': {'nodes': graph.nodes, 'sources': graph.sources},
        'partition_by': listed(config.get('partition_by')),
        'not_null': not_null_columns(),
        'comments': column_comments(model.columns or {}) if docs.get('columns') else {},
        'description': model.description if docs.get('relation') else none,
        'batch': true if model.batch else false,
        'released': model.resource_type != 'test',
        'repeatable': mode == 'replace' and model.resource_type == 'model' and not pre_hooks,
        'full_refresh': should_full_refresh(),
        'properties': {'tarn.model': model.unique_id, 'tarn.invocation': invocation_id},
    } -%}
    {%- do request.update(options) -%}
    {%- do adapter.ensure_transaction() -%}
    {%- set rows = lake_request('write', this, request) -%}
    {%- if model.batch -%}
        {#- The hooks that follow see what the batch wrote. -#}
        {%- do adapter.commit() -%}
        {%- do adapter.ensure_transaction() -%}
    {%- endif -%}
    {%- set said = 'unchanged' if rows is none else 'DELTA ' ~ rows -%}
    {%- call noop_statement('main', said, 'DELTA', rows) -%}{{ sql }}{%- endcall -%}
{%- endmacro %}


{#- Descriptions travel with a write. What changed since the table was made is committed after. -#}
{% macro duckdb__persist_docs(relation, model, for_relation, for_columns) -%}
    {%- set described, existing = {}, [] -%}
    {%- set description = model.description if for_relation and config.persist_relation_docs() -%}
    {%- if for_columns and config.persist_column_docs() and model.columns -%}
        {%- set existing = adapter.get_columns_in_relation(relation) | map(attribute='name') | list -%}
        {%- set described = validate_doc_columns(relation, model.columns, existing) -%}
    {%- endif -%}
    {%- if relation.is_view or not in_lake() -%}
        {%- set comments -%}
            {%- if description %}{{ alter_relation_comment(relation, description) }}{% endif %}
            {% if described %}{{ alter_column_comment(relation, described) }}{% endif %}
        {%- endset -%}
        {%- if comments | trim -%}
            {%- do run_query(comments) -%}
            {%- if relation.is_view and not is_rehearsal() -%}
                {%- do lake_request('remember_view', relation, {
                    'sql': model.compiled_code, 'comments': comments
                }) -%}
            {%- endif -%}
        {%- endif -%}
    {%- else -%}
        {%- do lake_request('describe', relation, {
            'description': description,
            'comments': column_comments(described, existing),
        }) -%}
    {%- endif -%}
{%- endmacro %}


{#- Descriptions by column, as the table spells it. -#}
{% macro column_comments(columns, existing=[]) -%}
    {%- set spelled = {} -%}
    {%- for name in existing -%}
        {%- do spelled.update({name | lower: name}) -%}
    {%- endfor -%}
    {%- set comments = {} -%}
    {%- for column in columns.values() if column.description -%}
        {%- set name = column.name if column.quote else spelled.get(column.name | lower) -%}
        {%- do comments.update({name or column.name: column.description}) -%}
    {%- endfor -%}
    {{- return(comments) -}}
{%- endmacro %}


{#- Where a Python model's rows wait for the write; none for an SQL model. -#}
{% macro python_rows() -%}
    {%- if model.language == 'python' -%}
        {{- return(make_temp_relation(this).incorporate(type='table')) -}}
    {%- endif -%}
    {{- return(none) -}}
{%- endmacro %}


{#- Before a node is written. -#}
{% macro open_node() -%}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}
{%- endmacro %}


{#- After it. -#}
{% macro close_node() -%}
    {%- do apply_grants(this, config.get('grants')) -%}
    {%- do persist_docs(this.incorporate(type='table'), model) -%}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {%- do adapter.commit() -%}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
{%- endmacro %}


{#- What the model selects: an SQL model's query, or what a Python model gave. -#}
{% macro model_query(made) -%}
    {{- return(contracted('select * from ' ~ made if made else compiled_code)) -}}
{%- endmacro %}


{#- The query of each view is kept in the lake, so that the next DuckDB can show it. -#}
{% macro duckdb__create_view_as(relation, sql) -%}
    {%- if model.resource_type in ('model', 'test') and not is_rehearsal() -%}
        {%- do lake_request('remember_view', this, {'sql': sql}) -%}
    {%- endif -%}
    {{- default__create_view_as(relation, sql) -}}
{%- endmacro %}


{#- A rehearsal begins with nothing: it does not see the table. -#}
{% macro is_incremental() -%}
    {%- if not execute -%}
        {{- return(false) -}}
    {%- endif -%}
    {%- set existing = load_cached_relation(this) -%}
    {{- return(
        existing is not none
        and existing.type == 'table'
        and model.config.materialized == 'incremental'
        and (in_lake() or config.get('file_format') != 'delta')
        and not should_full_refresh()
    ) -}}
{%- endmacro %}


{#- on-run-end: publish a release when `dbt build` ended green. -#}
{% macro publish_release(results) -%}
    {%- if execute and target.type == 'duckdb' -%}
        {%- set request = {
            'command': flags.WHICH,
            'rehearsal': is_rehearsal(),
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
