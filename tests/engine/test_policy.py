"""`storage.yml` says how tables are kept, and is checked as strictly as any declaration."""

import json
from datetime import timedelta
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tarn.errors import TarnError
from tarn.storage.lake import Lake
from tarn.storage.policy import COLD, FILE, SCHEMA_FILE, Layout, Policy, schema_text
from tarn.storage.writer import write
from tests.engine.conftest import ROOT


def policy(folder: Path, text: str) -> Policy:
    (folder / FILE).write_text(text)
    return Policy.read(folder)


def test_a_project_without_the_file_has_defaults(tmp_path: Path) -> None:
    kept = Policy.read(tmp_path).of("marts.sales")
    assert (kept.tier, kept.layout) == ("warm", Layout())
    assert Policy().releases.at_least == 10


def test_the_particular_wins_over_the_general(tmp_path: Path) -> None:
    read = policy(
        tmp_path,
        """
        defaults: {layout: {level: 3, target_file_mb: 64}}
        layers:
          raw_*: {cold: {after: 6 months, partition: day}, layout: {codec: snappy}}
          raw_pos: {cold: {after: 2 weeks, partition: day}}
        tables:
          raw_pos.*: {compact_from: 4}
          raw_pos.basket_items: {tier: cold, cold: {layout: {level: 12}}}
        """,
    )
    assert read.of("marts.sales").layout == Layout(level=3, target_file_mb=64)
    other = read.of("raw_crm.people")
    assert other.cold.after == timedelta(days=180)
    assert (other.layout.codec, other.layout.codec_level) == ("snappy", None)
    assert other.layout.target_file_mb == 64
    items = read.of("raw_pos.basket_items")
    assert (items.compact_from, items.cold.after) == (4, timedelta(weeks=2))
    assert items.tier == "cold"
    assert items.cold.layout == COLD.model_copy(update={"level": 12})


def test_every_mistake_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(TarnError) as failure:
        policy(
            tmp_path,
            "layers:\n  marts: {teir: hot}\nreleases:\n  keep: soon\n"
            "defaults:\n  layout: {codec: snappy, level: 3}\n  cold: {after: 1 day}\n",
        )
    told = str(failure.value)
    assert "storage.yml:2: unknown key 'teir'; did you mean 'tier'?" in told
    assert "storage.yml:4: releases.keep: 'soon' is no span of time" in told
    assert "storage.yml:6: defaults.layout: the level of snappy does not exist" in told
    assert "storage.yml:7: defaults.cold: `after` and `partition` belong together" in told


def test_the_published_schema_is_current_and_fits_the_projects_own_file() -> None:
    command = "from tarn.storage.policy import schema_text as t; print(t(), end='')"
    committed = (ROOT / SCHEMA_FILE).read_text()
    assert committed == schema_text(), f'python -c "{command}" > {SCHEMA_FILE}'
    text = (ROOT / FILE).read_text()
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")
    jsonschema.validate(yaml.safe_load(text), json.loads(committed))
    Policy.read(ROOT)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"releases": {"keep": "soon"}}, json.loads(committed))


def test_new_files_have_the_declared_layout(tmp_path: Path) -> None:
    layout = {"codec": "gzip", "row_group_rows": 1000}
    lake = Lake(str(tmp_path), policy=Policy.model_validate({"defaults": {"layout": layout}}))
    rows = pa.table({"day": list(range(2500))})
    write(lake, "marts.days", rows, mode="append")
    write(lake, "marts.days", pa.table({"day": [1, 9999]}), mode="merge", keys=["day"])
    table = lake.table("marts.days")
    assert table is not None
    for uri in table.file_uris():
        meta = pq.read_metadata(uri.removeprefix("file://"))
        groups = [meta.row_group(index) for index in range(meta.num_row_groups)]
        assert {group.column(0).compression for group in groups} == {"GZIP"}
        assert max(group.num_rows for group in groups) <= 1000
