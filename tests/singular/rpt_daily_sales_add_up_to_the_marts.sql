-- Guards the report's own join: no receipt line is lost or doubled on the way from
-- fct_sales, so money and pieces agree for each day and store, to the cent.
with

from_marts as (
    {{ line_totals(ref('fct_sales'), ['sold_date', 'store_key']) }}
),

from_report as (
    {{ line_totals(ref('rpt_daily_sales'), ['sold_date', 'store_key']) }}
)

select
    coalesce(from_marts.sold_date, from_report.sold_date) as sold_date,
    coalesce(from_marts.store_key, from_report.store_key) as store_key,
    from_marts.sales_amount as sales_amount_of_marts,
    from_report.sales_amount as sales_amount_of_report
from from_marts
full outer join from_report
    on
        from_marts.sold_date = from_report.sold_date
        and from_marts.store_key = from_report.store_key
where
    from_marts.store_key is null
    or from_report.store_key is null
    or from_marts.quantity != from_report.quantity
    or from_marts.sales_amount != from_report.sales_amount
    or from_marts.discount_amount != from_report.discount_amount
