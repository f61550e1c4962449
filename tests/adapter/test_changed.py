"""Classes of dbt-tests-adapter in which one thing is different here. Each says what, and why."""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from dbt.tests.adapter.basic import expected_catalog as expected
from dbt.tests.adapter.basic.test_docs_generate import BaseDocsGenerate, BaseDocsGenReferences
from dbt.tests.adapter.catalog import files as catalog_files
from dbt.tests.adapter.catalog.relation_types import CatalogRelationTypes
from dbt.tests.adapter.constraints.test_constraints import (
    BaseConstraintQuotedColumn,
    BaseConstraintsRollback,
    BaseConstraintsRuntimeDdlEnforcement,
    BaseIncrementalConstraintsColumnsEqual,
    BaseIncrementalConstraintsRollback,
    BaseIncrementalConstraintsRuntimeDdlEnforcement,
    BaseModelConstraintsRuntimeEnforcement,
    BaseTableConstraintsColumnsEqual,
    BaseViewConstraintsColumnsEqual,
)
from dbt.tests.adapter.empty.test_empty import MetadataWithEmptyFlag
from dbt.tests.adapter.ephemeral.test_ephemeral import BaseEphemeralMulti, BaseEphemeralNested
from dbt.tests.adapter.hooks.test_model_hooks import (
    BaseHookRefs,
    BasePrePostModelHooks,
    BasePrePostModelHooksInConfig,
    BasePrePostModelHooksInConfigKwargs,
    BasePrePostModelHooksInConfigWithCount,
)
from dbt.tests.adapter.hooks.test_model_hooks import (
    TestPrePostModelHooksUnderscores as PrePostModelHooksUnderscores,
)
from dbt.tests.adapter.hooks.test_run_hooks import BaseAfterRunHooks, BasePrePostRunHooks
from dbt.tests.adapter.incremental import test_incremental_microbatch
from dbt.tests.adapter.incremental.test_incremental_microbatch import BaseMicrobatch
from dbt.tests.adapter.python_model import test_python_model
from dbt.tests.adapter.python_model.test_python_model import (
    BasePythonEmptyTests,
    BasePythonIncrementalTests,
    BasePythonSampleTests,
)
from dbt.tests.adapter.sample_mode.fixtures import input_model_sql
from dbt.tests.adapter.sample_mode.test_sample_mode import BaseSampleModeTest
from dbt.tests.adapter.simple_copy.test_copy_uppercase import BaseSimpleCopyUppercase
from dbt.tests.adapter.simple_copy.test_simple_copy import SimpleCopyBase
from dbt.tests.adapter.simple_seed.fixtures import properties__schema_yml
from dbt.tests.adapter.simple_seed.seeds import (
    seed__actual_csv,
    seed__unicode_csv,
    seed__with_dots_csv,
    seeds__expected_sql,
)
from dbt.tests.adapter.simple_seed.test_seed import (
    BaseBasicSeedTests,
    BaseSeedConfigFullRefreshOn,
    BaseSeedSpecificFormats,
    BaseSimpleSeedWithBOM,
)
from dbt.tests.adapter.simple_seed.test_seed_type_override import BaseSimpleSeedColumnOverride
from dbt.tests.adapter.simple_snapshot import test_various_configs
from dbt.tests.adapter.simple_snapshot.test_various_configs import BaseSnapshotDbtValidToCurrent
from dbt.tests.adapter.utils.test_timestamps import BaseCurrentTimestamps
from dbt.tests.util import run_dbt, run_sql_with_adapter
from dbt_common.exceptions import DbtRuntimeError

TYPES = {"id_type": "INTEGER", "text_type": "VARCHAR", "time_type": "TIMESTAMP"}


class TestDocsGenerate(BaseDocsGenerate):
    """DuckDB's types; a Delta table says that it is one, and has rows, bytes, files, version."""

    @pytest.fixture(scope="class")
    def expected_catalog(self, project: Any) -> dict[str, Any]:
        kinds = {"view_type": "VIEW", "table_type": "Delta table"}
        catalog: dict[str, Any] = expected.base_expected_catalog(
            project, None, **TYPES, **kinds, model_stats=expected.no_stats(), seed_stats=ANY
        )
        return catalog


class TestDocsGenReferences(BaseDocsGenReferences):
    """The same."""

    @pytest.fixture(scope="class")
    def expected_catalog(self, project: Any) -> dict[str, Any]:
        kinds = {"view_type": "VIEW", "table_type": "Delta table", "bigint_type": "BIGINT"}
        stats = {"model_stats": ANY, "view_summary_stats": expected.no_stats()}
        catalog: dict[str, Any] = expected.expected_references_catalog(
            project, None, **TYPES, **kinds, **stats
        )
        return catalog


class TestCatalogRelationTypes(CatalogRelationTypes):
    """A Delta table says that it is one, and DuckDB has no materialized views."""

    @pytest.fixture(scope="class", autouse=True)
    def models(self) -> dict[str, str]:
        return {"my_table.sql": catalog_files.MY_TABLE, "my_view.sql": catalog_files.MY_VIEW}

    @pytest.mark.parametrize(
        ("node_name", "relation_type"),
        [
            ("seed.test.my_seed", "Delta table"),
            ("model.test.my_table", "Delta table"),
            ("model.test.my_view", "VIEW"),
        ],
    )
    def test_relation_types_populate_correctly(
        self, docs: Any, node_name: str, relation_type: str
    ) -> None:
        super().test_relation_types_populate_correctly(docs, node_name, relation_type)


class DuckDBTypes:
    """DuckDB's names of types, where the suite has Postgres's."""

    @pytest.fixture
    def string_type(self) -> str:
        return "VARCHAR"

    @pytest.fixture
    def int_type(self) -> str:
        return "INTEGER"

    @pytest.fixture
    def data_types(self) -> list[list[str]]:
        return [
            ["1", "INTEGER", "INTEGER"],
            ["'1'", "VARCHAR", "VARCHAR"],
            ["true", "bool", "BOOLEAN"],
            ["'2013-11-03 00:00:00-07'::timestamptz", "timestamptz", "TIMESTAMP WITH TIME ZONE"],
            ["'2013-11-03 00:00:00-07'::timestamp", "timestamp", "TIMESTAMP"],
            ["ARRAY['a','b','c']", "text[]", "VARCHAR[]"],
            ["ARRAY[1,2,3]", "int[]", "INTEGER[]"],
            ["'1'::numeric", "numeric", "DECIMAL"],
            ["""'{"bar": "baz", "active": false}'::json""", "json", "JSON"],
        ]


class TestTableConstraintsColumnsEqual(DuckDBTypes, BaseTableConstraintsColumnsEqual):
    pass


class TestViewConstraintsColumnsEqual(DuckDBTypes, BaseViewConstraintsColumnsEqual):
    pass


class TestIncrementalConstraintsColumnsEqual(DuckDBTypes, BaseIncrementalConstraintsColumnsEqual):
    pass


class Refuses:
    """The writer's own words for a null."""

    @pytest.fixture(scope="class")
    def expected_error_messages(self) -> list[str]:
        return ["null in column id", "declared not null"]


class TestConstraintsRollback(Refuses, BaseConstraintsRollback):
    pass


class TestIncrementalConstraintsRollback(Refuses, BaseIncrementalConstraintsRollback):
    pass


SELECTED = """
select id, color, date_day from (
    -- depends_on: <foreign_key_model_identifier>
    select 'blue' as color, 1 as id, '2019-01-01' as date_day
) as model_subq
"""


def held_to(query: str, *checks: str) -> str:
    """The query of a Delta table with check constraints: it fails at a row that breaks one."""
    told = [
        f"when ({check}) is false then error('CHECK constraint {escaped} failed on"
        " <model_identifier>"
        for check, escaped in ((check, check.replace("'", "''")) for check in checks)
    ]
    return f"select * from ({query}) as checked where case {' '.join(told)} else true end"


class TestTableConstraintsSql(BaseConstraintsRuntimeDdlEnforcement):
    """No DDL makes a Delta table: checks are in its query, not_null in the writer."""

    @pytest.fixture(scope="class")
    def expected_sql(self) -> str:
        return held_to(SELECTED, "(id > 0)", "id >= 1")


class TestIncrementalConstraintsSql(
    TestTableConstraintsSql, BaseIncrementalConstraintsRuntimeDdlEnforcement
):
    pass


class TestModelConstraintsSql(BaseModelConstraintsRuntimeEnforcement):
    """The same."""

    @pytest.fixture(scope="class")
    def expected_sql(self) -> str:
        return held_to(SELECTED, "(id > 0)", "id >= 1")


class TestQuotedConstraintSql(BaseConstraintQuotedColumn):
    """The same."""

    @pytest.fixture(scope="class")
    def expected_sql(self) -> str:
        query = """
            select id, "from", date_day from (
                select 'blue' as "from", 1 as id, '2019-01-01' as date_day
            ) as model_subq
        """
        return held_to(query, """("from" = 'blue')""")


class TestMetadataWithEmptyFlag(MetadataWithEmptyFlag):
    """Its models alter a seed by SQL, so the seed is a table of DuckDB's own.

    Of one whose type it alters, dbt-duckdb cannot commit what it did.
    """

    @pytest.mark.parametrize(
        "model",
        [
            "control",
            "get_columns_in_relation",
            "alter_relation_comment",
            "alter_column_comment",
            "alter_relation_add_remove_columns",
            "truncate_relation",
        ],
    )
    def test_run(self, project: Any, model: str) -> None:
        super().test_run(project, model)

    @pytest.fixture(scope="class")
    def project_config_update(self) -> dict[str, Any]:
        return {"seeds": {"+file_format": "none"}}


class CalledDbt:
    """The SQL it expects names a database `dbt`, which is a file's name on DuckDB."""

    @pytest.fixture(scope="class")
    def unique_schema(self) -> str:
        return "test_test_ephemeral"

    @pytest.fixture(scope="class")
    def dbt_profile_target(
        self, dbt_profile_target: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
    ) -> dict[str, Any]:
        return {**dbt_profile_target, "path": str(tmp_path_factory.mktemp("db") / "dbt.duckdb")}


class TestEphemeralMulti(CalledDbt, BaseEphemeralMulti):
    pass


class TestEphemeralNested(CalledDbt, BaseEphemeralNested):
    pass


class OnDuckDB:
    """A DuckDB target has no host, user or database name, which Postgres's have."""

    def check_hooks(self, state: str, project: Any, host: None, count: int = 1) -> None:
        counted = {"count": count} if "count" in self._parameters() else {}
        found = self.get_ctx_vars(state, project=project, **counted)  # type: ignore[attr-defined]
        for told in found if isinstance(found, list) else [found]:
            target: dict[str, Any] = {
                "test_state": state,
                "target_name": "default",
                "target_type": "duckdb",
            }
            target |= {"target_schema": project.test_schema, "target_threads": 4}
            assert target.items() <= told.items()
            assert datetime.fromisoformat(told["run_started_at"])
            assert told["invocation_id"]
            assert told["thread_id"].startswith(("Thread-", "MainThread"))

    def _parameters(self) -> tuple[str, ...]:
        names: tuple[str, ...] = self.get_ctx_vars.__code__.co_varnames  # type: ignore[attr-defined]
        return names


class TestPrePostModelHooks(OnDuckDB, BasePrePostModelHooks):
    pass


class TestModelHooksUnderscores(OnDuckDB, PrePostModelHooksUnderscores):
    pass


class TestHookRefs(OnDuckDB, BaseHookRefs):
    pass


class TestPrePostModelHooksInConfig(OnDuckDB, BasePrePostModelHooksInConfig):
    pass


class TestPrePostModelHooksInConfigKwargs(OnDuckDB, BasePrePostModelHooksInConfigKwargs):
    pass


class TestPrePostModelHooksInConfigWithCount(OnDuckDB, BasePrePostModelHooksInConfigWithCount):
    pass


class TestPrePostRunHooks(OnDuckDB, BasePrePostRunHooks):
    pass


class TestSimpleCopyUppercase(BaseSimpleCopyUppercase):
    """Its own profile is of Postgres."""

    @pytest.fixture(scope="class")
    def dbt_profile_target(self, dbt_profile_target: dict[str, Any]) -> dict[str, Any]:
        return dbt_profile_target


class TestSimpleCopy(SimpleCopyBase):
    """DuckDB has no materialized views."""

    test_simple_copy_with_materialized_views: Any = None


class TestSimpleSeedWithBOM(BaseSimpleSeedWithBOM):
    """An adapter brings the file with the byte order mark."""

    @pytest.fixture(scope="class", autouse=True)
    def setUp(self, project: Any) -> None:
        project.run_sql(seeds__expected_sql)
        seed = Path(project.project_root) / "seeds/seed_bom.csv"
        seed.write_text(seed__actual_csv.strip(), encoding="utf-8-sig")


class TestSeedSpecificFormats(BaseSeedSpecificFormats):
    """It makes the folder of its data itself. A table of a lake has no dots in its name."""

    @pytest.fixture(scope="class")
    def seeds(self, test_data_dir: Path) -> dict[str, str]:
        big = self._make_big_seed(test_data_dir).read_text()
        return {
            "big_seed.csv": big,
            "seed_with_dots.csv": seed__with_dots_csv,
            "seed_unicode.csv": seed__unicode_csv,
        }

    @pytest.fixture(scope="class")
    def test_data_dir(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("seeds") / "data"


class TestCurrentTimestamps(BaseCurrentTimestamps):
    """DuckDB's SQL and types."""

    @pytest.fixture(scope="class")
    def expected_sql(self) -> None:
        return None

    @pytest.fixture(scope="class")
    def expected_schema(self) -> dict[str, str]:
        return {
            "current_timestamp": "TIMESTAMP WITH TIME ZONE",
            "current_timestamp_in_utc_backcompat": "TIMESTAMP",
            "current_timestamp_backcompat": "TIMESTAMP",
        }


class TestAfterRunHooks(BaseAfterRunHooks):
    """dbt-duckdb raises what a DbtDatabaseError is made of."""

    def test_missing_column_pre_hook(self, project: Any) -> None:
        with pytest.raises(DbtRuntimeError):
            run_dbt(["run"], expect_pass=False)


def in_utc(sql: str) -> str:
    """DuckDB takes no offset in a timestamp without a time zone."""
    return re.sub(r"(TIMESTAMP '[^']+)-0'", r"\1'", sql)


class TestMicrobatch(BaseMicrobatch):
    """DuckDB's timestamps."""

    @pytest.fixture(scope="class")
    def input_model_sql(self) -> str:
        return in_utc(test_incremental_microbatch._input_model_sql)

    @pytest.fixture(scope="class")
    def insert_two_rows_sql(self, project: Any) -> str:
        new = "(4, TIMESTAMP '2020-01-04'), (5, TIMESTAMP '2020-01-05')"
        return f"insert into {project.test_schema}.input_model (id, event_time) values {new}"


class TestSampleMode(BaseSampleModeTest):
    """DuckDB's timestamps."""

    @pytest.fixture(scope="class")
    def input_model_sql(self) -> str:
        return in_utc(input_model_sql)


class TestPythonIncremental(BasePythonIncrementalTests):
    """A Python model on DuckDB is given relations, which filter by SQL."""

    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        incremental = test_python_model.incremental_python.replace("df.id > 5", '"id > 5"')
        return {"m_1.sql": test_python_model.m_1, "incremental.py": incremental}


class PythonInUTC:
    """DuckDB's timestamps."""

    @pytest.fixture(scope="class")
    def input_model_sql(self) -> str:
        return in_utc(test_python_model._input_model_sql)


class TestPythonEmpty(PythonInUTC, BasePythonEmptyTests):
    pass


class TestPythonSample(PythonInUTC, BasePythonSampleTests):
    pass


class Outlived:
    """A view of DuckDB's outlives the table below it, also when that is made anew."""

    def _check_relation_end_state(self, run_result: Any, project: Any, exists: bool) -> None:
        super()._check_relation_end_state(run_result, project, exists=True)  # type: ignore[misc]


class TestBasicSeedTests(Outlived, BaseBasicSeedTests):
    pass


class TestSeedConfigFullRefreshOn(Outlived, BaseSeedConfigFullRefreshOn):
    pass


class TestSimpleSeedColumnOverride(BaseSimpleSeedColumnOverride):
    """DuckDB's names of types."""

    @pytest.fixture(scope="class")
    def models(self) -> dict[str, str]:
        names = {"integer": "INTEGER", "boolean": "BOOLEAN", "date": "DATE"}
        names |= {"text": "character varying(256)", "timestamp without time zone": "TIMESTAMP"}
        given = re.compile(rf"(?<=type: )({'|'.join(names)})$", re.MULTILINE)
        schema = given.sub(lambda found: names[found[1]], properties__schema_yml)
        return {"schema.yml": schema}


class TestSnapshotDbtValidToCurrent(BaseSnapshotDbtValidToCurrent):
    """A Delta table has no order of rows, by which the suite finds the versions."""

    @pytest.fixture(autouse=True)
    def in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ordered(adapter: Any, sql: str, fetch: str) -> Any:
            # First the versions that the first run made, in their seed's order.
            by = "row_number() over (partition by id order by test_updated_at), id"
            return run_sql_with_adapter(adapter, f"{sql} order by {by}", fetch)

        monkeypatch.setattr(test_various_configs, "run_sql_with_adapter", ordered)
