"""What dbt-tests-adapter does not ask of a Delta table."""

from typing import Any

import polars as pl
import pytest
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.tests.util import get_artifact, run_dbt, run_dbt_and_capture, write_file

from tarn.storage import releases
from tarn.storage.lake import Lake

TABLE = "{{ config(materialized='table') }} "
RELEASING = {"on-run-end": "{{ publish_release(results) }}"}


def table(lake: Lake, project: Any, name: str) -> list[tuple[Any, ...]]:
    """The rows of a table, sorted, as another reader of Delta sees them."""
    rows = pl.read_delta(lake.uri(f"{project.test_schema}.{name}")).rows()
    return sorted(rows, key=str)


def failure(results: Any) -> str:
    return str(next(result.message for result in results if result.status == "error"))


class TestStrategies:
    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        rows = """
            {% if is_incremental() %} select 2 as id, 'b' as part, 20 as n, 20 as kept
            {% else %} select * from (values (1, 'a', 1, 1), (2, 'b', 2, 2), (3, 'b', 3, 3))
                as old(id, part, n, kept)
            {% endif %}
        """
        configs = {
            "overwritten": "incremental_strategy='insert_overwrite', partition_by='part'",
            "where_replaced": "incremental_strategy='replace_where',"
            " incremental_predicates=[\"part = 'b'\", 'id > 1']",
            "some_updated": "unique_key='id', merge_update_columns=['n']",
            "merged_where": "unique_key='id',"
            " incremental_predicates=['dbt_internal_dest.n < dbt_internal_source.n']",
            "some_deleted": "unique_key='id', merge_delete_where='n >= 3'",
            "unkeyed": "incremental_strategy='merge'",
        }
        return {
            f"{name}.sql": f"{{{{ config(materialized='incremental', {config}) }}}}{rows}"
            for name, config in configs.items()
        }

    def test_rows_after_an_increment(self, project: Any, lake: Lake) -> None:
        run_dbt(["run"])
        run_dbt(["run"])
        first, second, third = (1, "a", 1, 1), (2, "b", 2, 2), (3, "b", 3, 3)
        new = (2, "b", 20, 20)
        assert table(lake, project, "overwritten") == [first, new]
        assert table(lake, project, "where_replaced") == [first, new]
        assert table(lake, project, "some_updated") == [first, (2, "b", 20, 2), third]
        assert table(lake, project, "merged_where") == [first, new, third]
        assert table(lake, project, "some_deleted") == [first]
        assert table(lake, project, "unkeyed") == [first, second, new, third]
        # By now the predicate keeps the row as it is, so its key comes twice, as dbt has it.
        run_dbt(["run", "--select", "merged_where"])
        assert table(lake, project, "merged_where") == [first, new, new, third]

    def test_rows_outside_replace_where_are_refused(self, project: Any, lake: Lake) -> None:
        run_dbt(["run", "--select", "where_replaced", "--full-refresh"])
        before = table(lake, project, "where_replaced")
        model = "{{ config(materialized='incremental', incremental_strategy='replace_where',"
        model += (
            " incremental_predicates='id > 1') }} select 1 as id, 'a' as part, 1 as n, 1 as kept"
        )
        write_file(model, project.project_root, "models", "where_replaced.sql")
        run_dbt(["run", "--select", "where_replaced"], expect_pass=False)
        assert table(lake, project, "where_replaced") == before

    def test_a_strategy_says_what_it_needs(self, project: Any) -> None:
        model = "{{ config(materialized='incremental', incremental_strategy='insert_overwrite') }}"
        write_file(model + "select 1 as id", project.project_root, "models", "overwritten.sql")
        results = run_dbt(["run", "--select", "overwritten"], expect_pass=False)
        assert "'insert_overwrite' needs partition_by" in failure(results)


class TestColumnsOfAnIncrement:
    """Columns that go or change their type, and names in another case."""

    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        body = """
            {% if is_incremental() %} select 2 as ID, 1.5::double as n, 'x' as added
            {% else %} select 1 as id, 1::integer as n, true as gone
            {% endif %}
        """
        config = "materialized='incremental', unique_key='id'"
        return {
            f"{policy}.sql": f"{{{{ config({config}, on_schema_change='{policy}') }}}}{body}"
            for policy in ("sync_all_columns", "append_new_columns", "ignore", "fail")
        }

    def test_each_policy(self, project: Any, lake: Lake) -> None:
        run_dbt(["run"])
        results = run_dbt(["run"], expect_pass=False)
        said = {result.node.name: result.message for result in results}
        assert table(lake, project, "sync_all_columns") == [(1, 1.0, None), (2, 1.5, "x")]
        assert "added: added; removed: gone; of another type: n" in said["fail"]
        for policy in ("append_new_columns", "ignore", "fail"):
            assert table(lake, project, policy) == [(1, 1, True)], "1.5 is no integer"
        assert "n would change from int32 to double" in said["ignore"]


class TestKindsOfRelation:
    @pytest.fixture(scope="class")
    def project_config_update(self) -> dict[str, Any]:
        return RELEASING

    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        body = "select {{ var('n') }} as n"
        config = "{{ config(materialized=var('kind'), unique_key='n') }}"
        return {"changing.sql": config + body, "steady.sql": TABLE + "select 1 as n"}

    def build(self, kind: str, n: int) -> None:
        # A variable that has changed is read anew.
        run_dbt(["build", "--vars", f"{{kind: {kind}, n: {n}}}"])

    def test_an_increment_never_adds_to_what_a_view_replaced(
        self, project: Any, lake: Lake
    ) -> None:
        changing = f"{project.test_schema}.changing"
        self.build("table", 1)
        first = releases.current(lake)
        assert first is not None
        assert changing in first.tables

        self.build("view", 2)
        assert project.run_sql(f"select n from {changing}", fetch="one") == (2,)
        second = releases.current(lake)
        assert second is not None
        assert second.tables.keys() == {f"{project.test_schema}.steady"}

        self.build("incremental", 3)
        self.build("incremental", 4)
        assert table(lake, project, "changing") == [(3,), (4,)]
        kept = lake.table(changing, first.tables[changing].version)
        assert kept is not None
        assert pl.read_delta(kept).rows() == [(1,)]


class TestMicrobatches:
    """Batches that run at once, and days that are loaded again."""

    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        source = """
            {{ config(materialized='view', event_time='happened_at') }}
            select happened_at, hour(happened_at) as h from range(
                timestamp '2020-01-01', timestamp '2020-01-09', interval 6 hour
            ) as hours(happened_at)
            {% if var('late', false) %}
            union all select timestamp '2020-01-08 23:00', 23
            {% endif %}
        """
        model = """
            {{ config(materialized='incremental', incremental_strategy='microbatch',
                event_time='happened_at', batch_size='day', begin='2020-01-01', lookback=0,
                concurrent_batches=true) }}
            select * from {{ ref('happened') }}
        """
        return {"happened.sql": source, "by_day.sql": model}

    def test_each_batch_replaces_its_day(self, project: Any, lake: Lake) -> None:
        dates = ["--event-time-start", "2020-01-01", "--event-time-end", "2020-01-09"]
        run_dbt(["run", *dates])
        assert len(table(lake, project, "by_day")) == 32
        run_dbt(["run", *dates])
        assert len(table(lake, project, "by_day")) == 32
        dates = ["--event-time-start", "2020-01-08", "--event-time-end", "2020-01-09"]
        run_dbt(["run", *dates, "--vars", "late: true"])
        rows = table(lake, project, "by_day")
        assert len(rows) == len(set(rows)) == 33


class TestConstraints:
    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        schema = """
models:
  - name: checked
    config: {contract: {enforced: true}}
    constraints:
      - {type: primary_key, columns: [id]}
      - {type: unique, columns: [n], warn_unenforced: false}
      - {type: check, expression: n > 0, name: n_is_positive}
    columns: [{name: id, data_type: integer}, {name: n, data_type: integer}]
"""
        return {
            "checked.sql": TABLE + "select 1 as id, {{ var('n', 1) }} as n",
            "schema.yml": schema,
        }

    def test_checks_are_enforced_and_keys_are_named(self, project: Any, lake: Lake) -> None:
        _, said = run_dbt_and_capture(["run"])
        assert "A Delta table does not enforce primary_key (id)" in said
        assert "use a unique test" in said
        assert "enforce unique" not in said
        results = run_dbt(["run", "--vars", "n: 0"], expect_pass=False)
        assert "CHECK constraint n_is_positive failed" in failure(results)
        assert table(lake, project, "checked") == [(1, 1)]
        run_dbt(["run", "--vars", "n: 'null::integer'"])
        assert table(lake, project, "checked") == [(1, None)]


class TestDescriptions:
    SCHEMA = """
models:
  - name: described
    description: {0} table
    columns: [{{name: ID, description: {0} column}}]
  - name: viewed
    description: {0} view
"""

    @pytest.fixture(scope="class")
    def project_config_update(self) -> dict[str, Any]:
        return {"models": {"+persist_docs": {"relation": True, "columns": True}}}

    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        config = "{{ config(materialized='incremental', unique_key='id') }}"
        return {
            "described.sql": config + "select 1 as id",
            "viewed.sql": "{{ config(materialized='view') }} select 1 as id -- the only",
            "schema.yml": self.SCHEMA.format("first"),
        }

    def test_changed_descriptions_reach_a_table_that_is_there(
        self, project: Any, lake: Lake
    ) -> None:
        run_dbt(["run"])
        for words in ("second", "third"):
            schema = self.SCHEMA.format(words)
            write_file(schema, project.project_root, "models", "schema.yml")
            run_dbt(["run"])
            described = lake.table(f"{project.test_schema}.described")
            assert described is not None
            assert described.metadata().description == f"{words} table"
            assert described.schema().fields[0].metadata == {"comment": f"{words} column"}
        run_dbt(["docs", "generate"])
        nodes = get_artifact(project.project_root, "target", "catalog.json")["nodes"]
        assert nodes["model.test.described"]["columns"]["id"]["comment"] == "third column"
        assert nodes["model.test.viewed"]["metadata"]["comment"] == "third view"


class TestStoredFailures:
    @pytest.fixture(scope="class")
    def project_config_update(self) -> dict[str, Any]:
        return {**RELEASING, "data_tests": {"+store_failures": True, "+severity": "warn"}}

    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        return {"numbers.sql": TABLE + "select * from (values (1, 1), (1, null)) as rows(id, n)"}

    @pytest.fixture(scope="class")
    def tests(self) -> dict[str, str]:
        return {"no_null.sql": "select *, 1 as id from {{ ref('numbers') }} where n is null"}

    def test_they_stay_in_the_lake_and_out_of_releases(self, project: Any, lake: Lake) -> None:
        for _ in range(2):
            run_dbt(["build"])
            release = releases.current(lake)
            assert release is not None
            assert release.tables.keys() == {f"{project.test_schema}.numbers"}
        failures = f"{project.test_schema}_dbt_test__audit.no_null"
        assert pl.read_delta(lake.uri(failures)).rows() == [(1, None, 1)]


class TestHooksAndGrants:
    @pytest.fixture(scope="class")
    def project_config_update(self) -> dict[str, Any]:
        count = "insert into {{ target.schema }}.seen select '{{ this.name }}', '%s', {{ n }}"
        rows = "{% set n = '(select count(*) from ' ~ this ~ ')' %}"
        hooks = {
            "+pre-hook": "{% set n = 'null' %}" + count % "before",
            "+post-hook": [
                rows + count % "after",
                {"sql": rows + count % "committed", "transaction": False},
            ],
        }
        grants = {"+grants": {"select": ["somebody"]}}
        seen = "{{ target.schema }}.seen (node text, moment text, n int)"
        start = f"create table if not exists {seen}"
        return {"on-run-start": start, "seeds": hooks, "snapshots": hooks, "models": grants}

    @pytest.fixture(scope="class")
    def seeds(self) -> dict[str, str]:
        return {"sown.csv": "id,day\n1,2020-01-01\n2,2020-01-02\n"}

    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        snapshot = """
snapshots:
  - name: kept
    relation: ref('sown')
    config: {unique_key: id, strategy: timestamp, updated_at: day}
"""
        return {"granted.sql": TABLE + "select 1 as id", "kept.yml": snapshot}

    def test_hooks_see_what_was_written_and_grants_are_told(self, project: Any) -> None:
        DuckDBConnectionManager._LOGGED_MESSAGES.clear()
        _, said = run_dbt_and_capture(["build"])
        assert "Grants for relations are not supported by DuckDB" in said
        found = project.run_sql(f"select * from {project.test_schema}.seen", fetch="all")
        assert sorted(found) == [
            (node, at, n)
            for node in ("kept", "sown")
            for at, n in (("after", 2), ("before", None), ("committed", 2))
        ]
