-- One row per household the researcher surveyed.
select
    household_id,
    trim(age) as age_band,
    trim(income) as income_band,
    trim(home_ownership) as home_ownership,
    trim(marital_status) as marital_status,
    trim(household_size) as household_size,
    trim(household_comp) as household_composition,
    trim(kids_count) as kids_count,
    _loaded_at as loaded_at
from {{ source('market_research', 'household_demographics') }}
