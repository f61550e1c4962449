-- Guards opens, contacts and hashtags from joins that lose or double them: rows in are
-- rows out.
with

counts as (
    select
        'opens' as fact,
        (select count(*) from {{ ref('stg_crm__email_opens') }}) as delivered,
        (select count(*) from {{ ref('fct_email_opens') }}) as kept
    union all
    select
        'contacts' as fact,
        (select count(*) from {{ ref('stg_crm__contacts') }}) as delivered,
        (select count(*) - 1 from {{ ref('dim_contact') }}) as kept
    union all
    select
        'hashtags' as fact,
        (select count(*) from {{ ref('stg_trends__hashtags') }}) as delivered,
        (select count(*) from {{ ref('fct_trending_hashtags') }}) as kept
)

select * from counts
where delivered != kept
