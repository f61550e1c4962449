{#- What the member of a dimension that stands for all it lacks is called. -#}
{% macro unknown_key() -%} -1 {%- endmacro %}

{% macro unknown_household_key() -%} 'unknown' {%- endmacro %}

{% macro unknown_text() -%} 'Unknown' {%- endmacro %}

{% macro or_unknown(text) -%} coalesce({{ text }}, {{ unknown_text() }}) {%- endmacro %}
