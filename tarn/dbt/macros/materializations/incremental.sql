{#- `incremental` with `file_format: delta`: one Delta commit a run, none when nothing is new. -#}
{% materialization incremental, adapter='duckdb', supported_languages=['sql', 'python'] %}
    {%- if not in_lake() -%}
        {%- do leave_lake() -%}
        {{- return(dbt.materialization_incremental_duckdb()) -}}
    {%- endif -%}
    {%- do refuse_python() -%}
    {%- set existing = load_cached_relation(this) -%}

    {% call between_hooks() %}
        {%- set query = contracted(sql) -%}
        {%- if existing is none or should_full_refresh() -%}
            {%- do lake_write(query, 'replace') -%}
        {%- else -%}
            {%- do lake_increment(existing, query) -%}
        {%- endif -%}
    {% endcall %}

    {{- return({'relations': [this.incorporate(type='view')]}) -}}
{% endmaterialization %}


{% macro lake_increment(existing, sql) -%}
    {%- set keys = config.get('unique_key') or [] -%}
    {%- set keys = [keys] if keys is string else keys -%}
    {%- set strategy = config.get('incremental_strategy') or ('merge' if keys else 'append') -%}
    {%- set change = schema_change(existing, sql) -%}
    {%- set options = {'keys': keys, 'evolve': change.evolve} -%}

    {%- if strategy == 'append' -%}
        {%- do lake_write(change.sql, 'append', options) -%}
    {%- elif strategy == 'merge' and keys -%}
        {%- do lake_write(change.sql, 'merge', options) -%}
    {%- elif strategy == 'delete+insert' and keys -%}
        {%- do lake_write(change.sql, 'replace_keys', options) -%}
    {%- elif strategy == 'insert_overwrite' and config.get('partition_by') -%}
        {%- set by = config.get('partition_by') -%}
        {%- do options.update({'keys': [by] if by is string else by}) -%}
        {%- do lake_write(change.sql, 'replace_keys', options) -%}
    {%- else -%}
        {%- do exceptions.raise_compiler_error(
            "incremental_strategy '" ~ strategy ~ "' is not to be had here: use append; merge or"
            ~ " delete+insert with a unique_key; or insert_overwrite with a partition_by"
        ) -%}
    {%- endif -%}
{%- endmacro %}


{#- Apply on_schema_change: the query to write, and whether it may add columns. -#}
{% macro schema_change(existing, sql) -%}
    {%- set policy = incremental_validate_on_schema_change(
        config.get('on_schema_change'), default='ignore'
    ) -%}
    {%- set incoming = adapter.get_column_schema_from_query(sql) | map(attribute='name') | list -%}
    {%- set kept = adapter.get_columns_in_relation(existing) | map(attribute='name') | list -%}
    {%- set added = incoming | reject('in', kept) | list -%}
    {%- set removed = kept | reject('in', incoming) | list -%}

    {%- if policy == 'fail' and (added or removed) -%}
        {%- do exceptions.raise_compiler_error(
            'The columns of ' ~ this ~ ' changed (added: ' ~ (added | join(', ') or 'none')
            ~ '; removed: ' ~ (removed | join(', ') or 'none')
            ~ '). Run with --full-refresh, or set on_schema_change.'
        ) -%}
    {%- elif policy == 'sync_all_columns' and removed -%}
        {%- do exceptions.raise_compiler_error(
            'Dropping ' ~ removed | join(', ') ~ ' from ' ~ this
            ~ ' rewrites the whole table: run with --full-refresh.'
        ) -%}
    {%- elif policy == 'ignore' and added -%}
        {%- set columns = [] -%}
        {%- for name in incoming if name in kept -%}
            {%- do columns.append(adapter.quote(name)) -%}
        {%- endfor -%}
        {%- set sql = 'select ' ~ columns | join(', ') ~ ' from (' ~ sql ~ ') as incoming' -%}
    {%- endif -%}
    {{- return({'sql': sql, 'evolve': policy in ('append_new_columns', 'sync_all_columns')}) -}}
{%- endmacro %}
