{#- How many rows groups have, and how many different values of `member` in them, by a cheap
    way for many rows and few values: each value is a bit of a word of 60. A hash table of all
    groups and values takes three times as long and the memory. -#}
{% macro members_counted(relation, groups, member) -%}
    select
        {{ groups | join(', ') }},
        count(*) as row_count,
        bit_count(bit_or(member_bit)) as member_count
    from {{ relation }} as grouped_rows
    inner join (
        select
            {{ member }} as bit_member,
            cast(floor((member_number - 1) / 60) as bigint) as bit_word,
            cast(1 as bigint) << cast(mod(member_number - 1, 60) as int) as member_bit
        from (
            select
                {{ member }},
                row_number() over (order by {{ member }}) as member_number
            from (select distinct {{ member }} from {{ relation }}) as members
        ) as members_numbered
    ) as member_bits on grouped_rows.{{ member }} = member_bits.bit_member
    group by {{ groups | join(', ') }}, bit_word
{%- endmacro %}
