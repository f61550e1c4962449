{#- Kilometres between two places on the globe, in a straight line over its surface (haversine),
    to the millimetre; exact, so that sums of them do not hang on their order. Null where either
    place is: `least`, which keeps rounding out of asin's reach, would take it for the far side. -#}
{% macro kilometres_between(from_latitude, from_longitude, to_latitude, to_longitude) -%}
    case
        when
            {{ from_latitude }} + {{ from_longitude }}
            + {{ to_latitude }} + {{ to_longitude }} is not null
            then cast(
                2 * 6371.0088 * asin(least(1.0, sqrt(
                    power(sin(radians({{ to_latitude }} - {{ from_latitude }}) / 2), 2)
                    + cos(radians({{ from_latitude }})) * cos(radians({{ to_latitude }}))
                    * power(sin(radians({{ to_longitude }} - {{ from_longitude }}) / 2), 2)
                ))) as decimal(18, 6)
            )
    end
{%- endmacro %}
