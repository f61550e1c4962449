{#- The grain of a model whose key has several columns: no row twice, no part of it null.
    few_valued: for tables of many rows, a column of the key that has few values, up to some
    thousand. It makes the test three times cheaper; nulls are then left to the contract. -#}
{% test unique_combination_of_columns(model, columns, few_valued=none) %}
{% if few_valued %}
select *
from (
    {{ members_counted(model, columns | reject('equalto', few_valued) | list, few_valued) }}
) as counted
where row_count > member_count
{% else %}
select
    {{ columns | join(', ') }},
    count(*) as copies
from {{ model }}
group by {{ columns | join(', ') }}
having
    count(*) > 1
    {%- for column in columns %}
    or {{ column }} is null
    {%- endfor %}
{% endif %}
{% endtest %}
