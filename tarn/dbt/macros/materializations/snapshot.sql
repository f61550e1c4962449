{#- `snapshot` with `file_format: delta`: dbt's own staging query, then one Delta merge. -#}
{% materialization snapshot, adapter='duckdb' %}
    {%- if not in_lake() -%}
        {%- do leave_lake() -%}
        {{- return(dbt.materialization_snapshot_default()) -}}
    {%- endif -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- set strategy = strategy_dispatch(config.get('strategy'))(
        model, 'snapshotted_data', 'source_data', model['config'], existing is not none
    ) -%}

    {%- do open_node() -%}
    {%- set names = config.get('snapshot_table_column_names')
        or get_snapshot_table_column_names() -%}
    {%- if existing is none -%}
        {%- set query = build_snapshot_table(strategy, model['compiled_code']) -%}
        {%- do check_time_data_types(query) -%}
        {%- do lake_write(with_times(query, names), 'replace') -%}
    {%- else -%}
        {%- do adapter.assert_valid_snapshot_target_given_strategy(existing, names, strategy) -%}
        {%- set query = snapshot_staging_table(strategy, sql, existing) -%}
        {%- do check_time_data_types(query) -%}
        {%- do adapter.ensure_transaction() -%}
        {%- set staged = make_temp_relation(this) -%}
        {%- do run_query(create_table_as(True, staged, query)) -%}
        {%- do lake_write(
            snapshot_changes(existing, staged, names),
            'merge',
            {'keys': [names.dbt_scd_id], 'evolve': true},
        ) -%}
    {%- endif -%}
    {%- do close_node() -%}

    {{- return({'relations': [this.incorporate(type='table')]}) -}}
{% endmaterialization %}


{#- A version begins and ends at a time, even where its source knows only the day. -#}
{% macro with_times(query, names) -%}
    {%- set marks = [names.dbt_valid_from, names.dbt_valid_to, names.dbt_updated_at] -%}
    {%- set cast = [] -%}
    {%- for column in adapter.get_column_schema_from_query(query)
        if column.name in marks and column.data_type | lower == 'date' -%}
        {%- set name = adapter.quote(column.name) -%}
        {%- do cast.append('cast(' ~ name ~ ' as timestamp) as ' ~ name) -%}
    {%- endfor -%}
    {%- if not cast -%}
        {{- return(query) -}}
    {%- endif -%}
    {{- return('select * replace (' ~ cast | join(', ') ~ ') from (' ~ query ~ ') as versions') -}}
{%- endmacro %}


{#- New versions, and the versions they end with their end filled in: whole rows to merge. -#}
{% macro snapshot_changes(existing, staged, names) -%}
    {%- set added = [] -%}
    {%- set kept = adapter.get_columns_in_relation(existing) | map(attribute='name') | list -%}
    {%- for column in adapter.get_columns_in_relation(staged) | map(attribute='name')
        if column != 'dbt_change_type' and not column.startswith('dbt_unique_key')
        and column not in kept -%}
        {%- do added.append(column) -%}
    {%- endfor -%}
    {%- set open_end = config.get('dbt_valid_to_current') -%}
    select
    {%- for column in kept + added %}
        {{ adapter.quote(column) }}{{ ',' if not loop.last }}
    {%- endfor %}
    from {{ staged }}
    where dbt_change_type = 'insert'
    union all
    select
    {%- for column in kept + added %}
        {% if column == names.dbt_valid_to -%}
            ended.{{ adapter.quote(column) }}
        {%- elif column in added -%}
            null
        {%- else -%}
            version.{{ adapter.quote(column) }}
        {%- endif %}{{ ',' if not loop.last }}
    {%- endfor %}
    from {{ existing }} as version
    inner join {{ staged }} as ended
        on version.{{ names.dbt_scd_id }} = ended.{{ names.dbt_scd_id }}
    where
        ended.dbt_change_type in ('update', 'delete')
        and (
            version.{{ names.dbt_valid_to }} is null
            {%- if open_end %}
            or version.{{ names.dbt_valid_to }} = {{ open_end }}
            {%- endif %}
        )
{%- endmacro %}
