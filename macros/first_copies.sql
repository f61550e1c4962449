{#- Each event of a stream once: the copy that came first of those with one key and time.
    Who filters what this gives by the key or by the time reads no other row. -#}
{% macro first_copies(relation, key) -%}
    select *
    from (
        select
            *,
            row_number() over (
                partition by {{ key | join(', ') }}, occurred_at
                order by
                    loaded_at asc, sent_at asc, stream_partition asc, stream_offset asc
            ) as copy_number
        from {{ relation }}
    ) as copies
    where copy_number = 1
{%- endmacro %}
