{#- `incremental` with `file_format: delta`: one Delta commit a run, none when nothing is new. -#}
{% materialization incremental, adapter='duckdb', supported_languages=['sql', 'python'] %}
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
        {{- return(dbt.materialization_incremental_duckdb()) -}}
    {%- endif -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- set strategy = lake_strategy() -%}

    {%- do open_node() -%}
    {%- set made = python_rows() -%}
    {%- if made -%}
        {#- dbt lets nobody but a materialization itself run Python. -#}
        {%- call statement('python', language='python') -%}
            {{- py_write_table(temporary=True, relation=made, compiled_code=compiled_code) -}}
        {%- endcall -%}
    {%- endif -%}
    {%- set query = model_query(made) -%}
    {%- if existing is none or not existing.is_table or should_full_refresh() -%}
        {%- do lake_write(without_deleted(query), 'replace') -%}
    {%- else -%}
        {%- do strategy(schema_change(existing, query), listed(config.get('unique_key'))) -%}
    {%- endif -%}
    {%- do close_node() -%}

    {{- return({'relations': [this.incorporate(type='table')]}) -}}
{% endmaterialization %}


{#- A strategy is a macro (change, keys); see `schema_change` for what it is given. -#}
{% macro lake_strategy() -%}
    {%- set keys = listed(config.get('unique_key')) -%}
    {%- set strategy = config.get('incremental_strategy') or ('merge' if keys else 'append') -%}
    {%- set strategies = {
        'append': lake_append,
        'merge': lake_merge,
        'delete+insert': lake_delete_insert,
        'insert_overwrite': lake_insert_overwrite,
        'replace_where': lake_replace_where,
        'microbatch': lake_microbatch,
    } -%}
    {%- set needed = {
        'insert_overwrite': 'partition_by',
        'replace_where': 'incremental_predicates',
        'microbatch': 'event_time',
    } -%}
    {%- if strategy not in strategies -%}
        {#- Of a strategy it does not know dbt says so; of a macro of the project's, we do. -#}
        {%- do adapter.get_incremental_strategy_macro(context, strategy) -%}
        {%- do exceptions.raise_compiler_error(
            "incremental_strategy '" ~ strategy ~ "' is not to be had in a Delta table: use "
            ~ strategies | join(', ')
        ) -%}
    {%- elif strategy in needed and not config.get(needed[strategy]) -%}
        {%- do exceptions.raise_compiler_error(
            "incremental_strategy '" ~ strategy ~ "' needs " ~ needed[strategy]
        ) -%}
    {%- endif -%}
    {{- return(strategies[strategy]) -}}
{%- endmacro %}


{% macro lake_append(change, keys) -%}
    {%- do lake_write(change.sql, 'append', {'evolve': change.evolve}) -%}
{%- endmacro %}


{#- Without a key no row is the same as another, so all are new. -#}
{% macro lake_merge(change, keys) -%}
    {%- if not keys -%}
        {{- return(lake_append(change, keys)) -}}
    {%- endif -%}
    {%- set options = {'keys': keys, 'evolve': change.evolve} -%}
    {%- set predicates = incremental_predicates() -%}
    {%- set updated = updated_columns(change, keys) -%}
    {%- if config.get('merge_delete_where') -%}
        {%- if updated is not none or predicates -%}
            {%- do exceptions.raise_compiler_error(
                'merge_delete_where goes with neither incremental_predicates nor a choice of'
                ~ ' columns: drop one of the two'
            ) -%}
        {%- endif -%}
        {%- do options.update({'deleted': 'tarn deleted'}) -%}
        {%- set change = dict(change, sql=with_deleted(change.sql)) -%}
    {%- elif updated is not none or predicates -%}
        {%- set incoming = staged(change.sql) -%}
        {%- if predicates and beyond_predicates(change.existing, incoming, keys, predicates) -%}
            {%- if updated is not none -%}
                {%- do exceptions.raise_compiler_error(
                    'A merge whose incremental_predicates leave out rows of the same key cannot'
                    ~ ' also choose columns: drop one of the two'
                ) -%}
            {%- endif -%}
            {{- return(lake_write(
                rows_besides(change.existing, incoming, keys, predicates), 'replace'
            )) -}}
        {%- endif -%}
        {%- set change = dict(change, sql='select * from ' ~ incoming) -%}
        {%- if updated is not none -%}
            {%- do change.update({
                'sql': with_columns_kept(change, incoming, keys, updated)
            }) -%}
        {%- endif -%}
    {%- endif -%}
    {%- do lake_write(change.sql, 'merge', options) -%}
{%- endmacro %}


{#- Rows for which `merge_delete_where` holds delete the row of their key. Marked so: -#}
{% macro with_deleted(sql) -%}
    select *, coalesce({{ config.get('merge_delete_where') }}, false) as "tarn deleted"
    from ({{ sql }}) as incoming
{%- endmacro %}


{#- A table that is made has none of them. -#}
{% macro without_deleted(sql) -%}
    {%- set where = config.get('merge_delete_where') -%}
    {{- return(
        'select * from (' ~ sql ~ ') as incoming where (' ~ where ~ ') is not true'
        if where else sql
    ) -}}
{%- endmacro %}


{% macro lake_delete_insert(change, keys) -%}
    {%- if not keys -%}
        {{- return(lake_append(change, keys)) -}}
    {%- endif -%}
    {%- set options = {'keys': keys, 'evolve': change.evolve} -%}
    {%- set predicates = incremental_predicates() -%}
    {%- if predicates -%}
        {%- set incoming = staged(change.sql) -%}
        {%- set change = dict(change, sql='select * from ' ~ incoming) -%}
        {%- if beyond_predicates(change.existing, incoming, keys, predicates) -%}
            {{- return(lake_write(
                rows_besides(change.existing, incoming, keys, predicates), 'replace'
            )) -}}
        {%- endif -%}
    {%- endif -%}
    {%- do lake_write(change.sql, 'replace_keys', options) -%}
{%- endmacro %}


{#- The partitions that the rows fall in are replaced. -#}
{% macro lake_insert_overwrite(change, keys) -%}
    {%- set by = listed(config.get('partition_by')) -%}
    {%- do lake_write(change.sql, 'replace_keys', {'keys': by, 'evolve': change.evolve}) -%}
{%- endmacro %}


{#- The rows for which incremental_predicates hold are replaced; no other row may come. -#}
{% macro lake_replace_where(change, keys) -%}
    {%- set predicates = incremental_predicates() -%}
    {%- do lake_write(
        change.sql,
        'replace_where',
        {'where': '(' ~ predicates | join(') and (') ~ ')', 'evolve': change.evolve},
    ) -%}
{%- endmacro %}


{#- The batch's window of event_time is replaced. -#}
{% macro lake_microbatch(change, keys) -%}
    {%- set window = batch_window() -%}
    {%- set where = ([window] + incremental_predicates()) | join(' and ') -%}
    {%- do lake_write(
        'select * from (' ~ change.sql ~ ') as incoming where ' ~ window,
        'replace_where',
        {'where': where, 'evolve': change.evolve},
    ) -%}
{%- endmacro %}


{% macro batch_window() -%}
    {%- set event_time = config.get('event_time') -%}
    {#- A bare text: cast, delta-rs compares it with no type but one. In UTC, as dbt counts. -#}
    {%- set form = '%Y-%m-%d %H:%M:%S' -%}
    {%- set start = model.batch.event_time_start.strftime(form) -%}
    {%- set end = model.batch.event_time_end.strftime(form) -%}
    {{- return(
        event_time ~ " >= '" ~ start ~ "' and " ~ event_time ~ " < '" ~ end ~ "'"
    ) -}}
{%- endmacro %}


{% macro incremental_predicates() -%}
    {{- return(listed(config.get('predicates') or config.get('incremental_predicates'))) -}}
{%- endmacro %}


{#- The incoming rows in DuckDB's memory, for strategies that look at them twice. -#}
{% macro staged(sql) -%}
    {%- set relation = make_temp_relation(this).incorporate(type='table') -%}
    {%- do run_query('create or replace temp table ' ~ relation ~ ' as ' ~ sql) -%}
    {{- return(relation) -}}
{%- endmacro %}


{#- A row of the table that has an incoming row's key, in dbt's names for the two sides. -#}
{% macro same_key(keys) -%}
    {%- for key in keys -%}
        dbt_internal_source.{{ key }} = dbt_internal_dest.{{ key }}
        {{- ' and ' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}


{#- Rows of the table that go: an incoming row has their key, and the predicates hold. A bare
    column of a predicate is the table's, unless it also speaks of the incoming row. -#}
{% macro replaced_rows(incoming, keys, predicates) -%}
    {%- set held = '(' ~ predicates | join(') and (') ~ ')' -%}
    {%- set of_both = predicates and 'dbt_internal_source' in held | lower -%}
    exists (
        select 1
        from {{ incoming }} as dbt_internal_source
        where {{ same_key(keys) }} {%- if of_both %} and {{ held }}{% endif %}
    )
    {%- if predicates and not of_both %} and {{ held }}{% endif %}
{%- endmacro %}


{#- Whether rows have an incoming key and yet, by the predicates, are to stay as they are. -#}
{% macro beyond_predicates(existing, incoming, keys, predicates) -%}
    {%- set query -%}
        select 1
        from {{ existing }} as dbt_internal_dest
        where
            {{ replaced_rows(incoming, keys, []) }}
            and ({{ replaced_rows(incoming, keys, predicates) }}) is not true
        limit 1
    {%- endset -%}
    {{- return(run_query(query).rows | length > 0) -}}
{%- endmacro %}


{#- The whole table as it becomes: what the incoming rows do not replace, and those. -#}
{% macro rows_besides(existing, incoming, keys, predicates) -%}
    select *
    from {{ existing }} as dbt_internal_dest
    where ({{ replaced_rows(incoming, keys, predicates) }}) is not true
    union all by name
    select * from {{ incoming }}
{%- endmacro %}


{#- Names of the columns that a merge updates in rows it finds; none for all of them. -#}
{% macro updated_columns(change, keys) -%}
    {%- set only = listed(config.get('merge_update_columns')) -%}
    {%- set never = listed(config.get('merge_exclude_columns')) | map('lower') | list -%}
    {%- if only and never -%}
        {%- do exceptions.raise_compiler_error(
            'Model cannot specify merge_update_columns and merge_exclude_columns. Please update'
            ~ ' model to use only one config'
        ) -%}
    {%- endif -%}
    {%- if only -%}
        {{- return(only | map('lower') | list) -}}
    {%- elif never -%}
        {{- return(change.incoming | map('lower') | reject('in', never) | list) -}}
    {%- endif -%}
    {{- return(none) -}}
{%- endmacro %}


{#- The incoming rows, with the table's own value in each column that is not updated. -#}
{% macro with_columns_kept(change, incoming, keys, updated) -%}
    {%- set lowered = keys | map('lower') | list -%}
    select
    {%- for name in change.incoming %}
        {%- set column = adapter.quote(name) %}
        {% if name | lower in lowered or name | lower in updated -%}
            dbt_internal_source.{{ column }}
        {%- else -%}
            case
                when dbt_internal_dest.{{ keys[0] }} is null then dbt_internal_source.{{ column }}
                {%- if name in change.kept %}
                else dbt_internal_dest.{{ column }}
                {%- endif %}
            end as {{ column }}
        {%- endif %}{{ ',' if not loop.last }}
    {%- endfor %}
    from {{ incoming }} as dbt_internal_source
    left join {{ change.existing }} as dbt_internal_dest on {{ same_key(keys) }}
{%- endmacro %}


{#- Apply on_schema_change. Gives the query to write (`sql`), its columns (`incoming`), the
    table (`existing`), its columns (`kept`), and whether the write may add some (`evolve`). -#}
{% macro schema_change(existing, sql) -%}
    {%- set policy = incremental_validate_on_schema_change(
        config.get('on_schema_change'), default='ignore'
    ) -%}
    {%- set columns = adapter.get_column_schema_from_query(sql) -%}
    {%- set kept = adapter.get_columns_in_relation(existing) | map(attribute='name') | list -%}
    {%- set spelled = {} -%}
    {%- for name in kept -%}
        {%- do spelled.update({name | lower: name}) -%}
    {%- endfor -%}
    {%- set selected, incoming, added = [], [], [] -%}
    {%- for column in columns -%}
        {%- set name = spelled.get(column.name | lower, column.name) -%}
        {%- if name not in kept -%}
            {%- do added.append(name) -%}
        {%- endif -%}
        {%- if name in kept or policy != 'ignore' -%}
            {%- do incoming.append(name) -%}
            {%- do selected.append(adapter.quote(column.name) ~ ' as ' ~ adapter.quote(name)) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- set removed = kept | reject('in', incoming) | list -%}
    {%- if incoming != columns | map(attribute='name') | list -%}
        {%- set sql = 'select ' ~ selected | join(', ') ~ ' from (' ~ sql ~ ') as incoming' -%}
    {%- endif -%}

    {%- if policy in ('fail', 'sync_all_columns') -%}
        {%- set retyped = lake_request('misfits', this, {'sql': sql}) -%}
        {%- if policy == 'fail' and (added or removed or retyped) -%}
            {%- do exceptions.raise_compiler_error(
                'The columns of ' ~ this ~ ' changed (added: ' ~ (added | join(', ') or 'none')
                ~ '; removed: ' ~ (removed | join(', ') or 'none')
                ~ '; of another type: ' ~ (retyped | join(', ') or 'none')
                ~ '). Run with --full-refresh, or set on_schema_change.'
            ) -%}
        {%- elif removed or retyped -%}
            {%- do sync_columns(existing, columns, kept, removed, retyped) -%}
            {%- set kept = kept | reject('in', removed) | list -%}
        {%- endif -%}
    {%- endif -%}
    {{- return({
        'sql': sql,
        'incoming': incoming,
        'existing': existing,
        'kept': kept,
        'evolve': policy in ('append_new_columns', 'sync_all_columns'),
    }) -}}
{%- endmacro %}


{#- Delta drops or retypes a column by writing the table anew: a commit before the increment. -#}
{% macro sync_columns(existing, columns, kept, removed, retyped) -%}
    {%- set types = {} -%}
    {%- for column in columns -%}
        {%- do types.update({column.name | lower: column.data_type}) -%}
    {%- endfor -%}
    {%- set selected = [] -%}
    {%- for name in kept if name not in removed -%}
        {%- set column = adapter.quote(name) -%}
        {%- if name in retyped -%}
            {%- set column = 'cast(' ~ column ~ ' as ' ~ types[name | lower] ~ ') as ' ~ column -%}
        {%- endif -%}
        {%- do selected.append(column) -%}
    {%- endfor -%}
    {%- do lake_write('select ' ~ selected | join(', ') ~ ' from ' ~ existing, 'replace') -%}
{%- endmacro %}
