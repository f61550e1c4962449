{#- The time zone of a store the catalogue does not list: the retailer's own. -#}
{% macro home_time_zone() -%} 'America/New_York' {%- endmacro %}
