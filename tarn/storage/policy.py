"""`storage.yml`: how each table is kept, for how long, and what keeping it costs.

Rules are merged from the general to the particular: `defaults`, then each of `layers` and then
each of `tables` whose pattern fits, in the order of the file. A project without the file is kept
by the defaults below.
"""

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from deltalake import WriterProperties
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from tarn.strict_yaml import Spec, parse, read

FILE = "storage.yml"
SCHEMA_FILE = "tarn/storage/schema.json"

Tier = Literal["hot", "warm", "cold"]
_LEVELS = {"zstd": (1, 22), "gzip": (1, 9), "brotli": (0, 11)}
_UNITS = {"hour": 1 / 24, "day": 1, "week": 7, "month": 30, "year": 365}
_PAGE_BYTES = 8 * 1024 * 1024
_SPAN = rf"^\d+ ({'|'.join(_UNITS)})s?$"


def _span(text: object) -> object:
    if not isinstance(text, str):
        return text
    if not re.fullmatch(_SPAN, text):
        raise ValueError(f"{text!r} is no span of time; write a number and {', '.join(_UNITS)}")
    number, unit = text.split()
    return timedelta(days=int(number) * _UNITS[unit.removesuffix("s")])


def _text(span: timedelta) -> str:
    hours = round(span.total_seconds() / 3600)
    return f"{hours // 24} days" if hours % 24 == 0 else f"{hours} hours"


Span: TypeAlias = Annotated[
    timedelta,
    BeforeValidator(_span),
    PlainSerializer(_text),
    WithJsonSchema({"type": "string", "pattern": _SPAN}),
]
"""`30 days`, `12 hours`, `6 months` (of 30 days)."""


class Layout(Spec):
    """How data files are written."""

    codec: Literal["zstd", "snappy", "gzip", "brotli", "lz4_raw", "uncompressed"] = "zstd"
    level: int | None = None
    """Of zstd (1 to 22), gzip (1 to 9) or brotli (0 to 11); left out, 1."""
    row_group_rows: int = Field(default=122_880, ge=1_000)
    """Rows that are read together. 122,880 is what one DuckDB thread takes at a time."""
    target_file_mb: int = Field(default=32, ge=1)
    """Files are of about this size (MiB): a merge rewrites each file it touches."""

    @model_validator(mode="after")
    def _level_fits(self) -> "Layout":
        low, high = _LEVELS.get(self.codec, (1, 0))
        if self.level is not None and not low <= self.level <= high:
            allowed = f"goes from {low} to {high}" if high else "does not exist"
            raise ValueError(f"the level of {self.codec} {allowed}")
        return self

    @property
    def target_file_bytes(self) -> int:
        return self.target_file_mb * 1024 * 1024

    @property
    def codec_level(self) -> int | None:
        """The level in force; None for a codec that has none."""
        return (self.level or 1) if self.codec in _LEVELS else None

    def writer_properties(self) -> WriterProperties:
        """The same for delta-rs; `target_file_bytes` goes beside it.

        A column of a row group is one page: 1 to 7 % smaller than pages of 20,000 rows on real
        sales, 5 to 26 % with a million rows a group, and no slower to read.
        """
        codec: Any = self.codec.upper()
        return WriterProperties(
            data_page_row_count_limit=self.row_group_rows,
            data_page_size_limit=_PAGE_BYTES,
            compression=codec,
            compression_level=self.codec_level,
            max_row_group_size=self.row_group_rows,
        )

    @property
    def mark(self) -> str:
        """End of a file's name that tells its layout: no Parquet footer tells the level."""
        return f".{self.codec}_{self.codec_level or 0}_{self.row_group_rows}.parquet"

    def __str__(self) -> str:
        level = "" if self.codec_level is None else f"-{self.codec_level}"
        return f"{self.codec}{level}, {self.row_group_rows:,} rows a group"


COLD = Layout(level=9, row_group_rows=1_048_576, target_file_mb=512)
"""12 to 27 % smaller than the default on a year of real receipts and offers; level 19 takes off
one more and five times as long."""


class Cold(Spec):
    """Partitions that are old enough are recompressed and compacted; reads give the same."""

    after: Span | None = None
    """Partitions whose `partition` lies further back are cold."""
    partition: str | None = None
    """The partition column that tells a partition's time: a date or a timestamp, or text or a
    number that reads as a year, month or day (2017, 2017-03, 201703, 20170331)."""
    layout: Layout = COLD
    cluster_by: tuple[str, ...] | None = None
    """Sort order of cold files, instead of the table's."""

    @model_validator(mode="after")
    def _complete(self) -> "Cold":
        if (self.after is None) != (self.partition is None):
            raise ValueError("`after` and `partition` belong together")
        return self


class Hot(Spec):
    """A serving copy of the current release, beside the lake."""

    key: tuple[str, ...] = ()
    """Columns that find one row; the native copy gets an index on them."""
    redis: str | None = None
    """Address of a Redis that gets each row under its key at publication: `${REDIS_URL}`."""

    @model_validator(mode="after")
    def _redis_has_a_key(self) -> "Hot":
        if self.redis and not self.key:
            raise ValueError("redis needs a key")
        return self


class TablePolicy(Spec):
    """How one table is kept."""

    tier: Tier = "warm"
    """hot: also copied into catalog.duckdb as a native table. warm: in the lake. cold: upkeep
    brings every file into the cold layout."""
    layout: Layout = Layout()
    """How new files are written."""
    partition_by: tuple[str, ...] = ()
    """For a table whose maker declares no partitioning (models and sources declare their own)."""
    cluster_by: tuple[str, ...] = ()
    """Columns by which rows are sorted when files are compacted."""
    compact_from: int = Field(default=8, ge=2)
    """A partition is compacted when so many of its files are below half the target size."""
    cold: Cold = Cold()
    hot: Hot = Hot()


class Rule(Spec):
    """What a layer or table says for itself; the rest comes from what is more general."""

    tier: Tier | None = None
    """hot: also copied into catalog.duckdb as a native table. warm: in the lake. cold: upkeep
    brings every file into the cold layout."""
    layout: Layout | None = None
    """How new files are written."""
    partition_by: tuple[str, ...] | None = None
    """For a table whose maker declares no partitioning (models and sources declare their own)."""
    cluster_by: tuple[str, ...] | None = None
    """Columns by which rows are sorted when files are compacted."""
    compact_from: int | None = Field(default=None, ge=2)
    """A partition is compacted when so many of its files are below half the target size."""
    cold: Cold | None = None
    """From when on partitions are cold, and how cold files are written."""
    hot: Hot | None = None
    """What the serving copy of a hot table is."""


class Releases(Spec):
    """Which releases are kept."""

    keep: Span = timedelta(days=30)
    """Younger ones stay."""
    at_least: int = Field(default=10, ge=1)
    """So many of the newest stay however old they are."""


class Prices(Spec):
    """What storage costs."""

    currency: str = "USD"
    per_gb_month: Mapping[Tier, float] = {"hot": 0.08, "warm": 0.023, "cold": 0.023}
    """Of 10^9 bytes. hot is the native copy, and comes on top of the table in the lake."""


class Policy(Spec):
    """The whole of `storage.yml`."""

    defaults: Rule = Rule()
    """For every table."""
    layers: Mapping[str, Rule] = {}
    """By schema, or by a pattern of schemas such as raw_*."""
    tables: Mapping[str, Rule] = {}
    """By schema.table, or by a pattern such as marts.fct_*."""
    releases: Releases = Releases()
    vacuum_after: Span = timedelta(days=1)
    """What no release needs stays this long, for readers and writers that are still at work."""
    prices: Prices = Prices()

    @classmethod
    def read(cls, project_dir: Path) -> "Policy":
        """The policy of a project; raises TarnError that lists every mistake by line."""
        path = project_dir / FILE
        return parse(read(path, FILE), cls) if path.is_file() else cls()

    def of(self, name: str) -> TablePolicy:
        """The policy of `schema.table`."""
        schema = name.partition(".")[0]
        rules = [self.defaults]
        rules += [rule for pattern, rule in self.layers.items() if fnmatchcase(schema, pattern)]
        rules += [rule for pattern, rule in self.tables.items() if fnmatchcase(name, pattern)]
        merged: dict[str, Any] = {"cold": {"layout": COLD.model_dump()}}
        for rule in rules:
            _merge(merged, rule.model_dump(exclude_unset=True))
        return TablePolicy.model_validate(merged)


def schema_text() -> str:
    """The JSON Schema of the file, by which editors complete and check it."""
    schema = {**Policy.model_json_schema(), "title": "How a Tarn project keeps its tables"}
    return json.dumps(schema, indent=2) + "\n"


def _merge(into: dict[str, Any], rule: Mapping[str, Any]) -> None:
    """Lay a rule over what is more general. Another codec does not inherit the level."""
    if "codec" in rule and "level" not in rule:
        into.pop("level", None)
    for key, value in rule.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        elif value is not None:
            into[key] = value
