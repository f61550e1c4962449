{#- A contract on a Delta table: its columns, and those constraints that a stream can be held to. -#}

{#- The query with its contract checked and its columns in the contract's order. -#}
{% macro contracted(sql) -%}
    {%- if config.get('sql_header') -%}
        {%- do run_query(config.get('sql_header')) -%}
    {%- endif -%}
    {%- if not config.get('contract').enforced -%}
        {{- return(sql) -}}
    {%- endif -%}
    {%- do get_assert_columns_equivalent(sql) -%}
    {%- do warn_of_constraints() -%}
    {{- return(checked(get_select_subquery(sql))) -}}
{%- endmacro %}


{#- Every constraint of the model, a column's too: what it is, of which columns. -#}
{% macro declared_constraints() -%}
    {%- set found = [] -%}
    {%- for constraint in model.constraints or [] -%}
        {%- do found.append(dict(constraint, columns=constraint.columns or [])) -%}
    {%- endfor -%}
    {%- for column in model.columns.values() -%}
        {%- for constraint in column.constraints or [] -%}
            {%- do found.append(dict(constraint, columns=[column.name])) -%}
        {%- endfor -%}
    {%- endfor -%}
    {{- return(found) -}}
{%- endmacro %}


{#- Columns in which the writer refuses a null. -#}
{% macro not_null_columns() -%}
    {%- set found = [] -%}
    {%- if config.get('contract') and config.get('contract').enforced -%}
        {%- for constraint in declared_constraints()
            if constraint.type in ('not_null', 'primary_key') -%}
            {%- for name in constraint.columns if name not in found -%}
                {%- do found.append(name) -%}
            {%- endfor -%}
        {%- endfor -%}
    {%- endif -%}
    {{- return(found) -}}
{%- endmacro %}


{#- The query, which fails at the first row that breaks a check constraint. -#}
{% macro checked(sql) -%}
    {%- set broken = [] -%}
    {%- for constraint in declared_constraints() if constraint.type == 'check' -%}
        {%- set told = 'CHECK constraint ' ~ (constraint.name or constraint.expression)
            ~ ' failed on ' ~ this.schema ~ '.' ~ this.identifier -%}
        {%- do broken.append(
            'when (' ~ constraint.expression ~ ") is false then error('"
            ~ adapter.escape_sql_string(told) ~ "')"
        ) -%}
    {%- endfor -%}
    {%- if not broken -%}
        {{- return(sql) -}}
    {%- endif -%}
    {{- return(
        'select * from (' ~ sql ~ ') as checked where case ' ~ broken | join(' ')
        ~ ' else true end'
    ) -}}
{%- endmacro %}


{#- Delta keeps no index, so it takes no constraint over several rows. -#}
{% macro warn_of_constraints() -%}
    {%- set instead = {
        'unique': 'a unique test',
        'primary_key': 'a unique test',
        'foreign_key': 'a relationships test',
        'custom': 'a test of your own',
    } -%}
    {%- for constraint in declared_constraints()
        if constraint.type in instead and constraint.warn_unenforced != false
        and constraint.warn_unsupported != false -%}
        {%- do exceptions.warn(
            'A Delta table does not enforce ' ~ constraint.type ~ ' ('
            ~ (constraint.columns | join(', ') or constraint.expression) ~ ') on ' ~ this.schema
            ~ '.' ~ this.identifier ~ ': use ' ~ instead[constraint.type]
            ~ ', and warn_unenforced: false to hide this line'
        ) -%}
    {%- endfor -%}
{%- endmacro %}
