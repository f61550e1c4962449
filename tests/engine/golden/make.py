"""Writes `tables.tar.xz` and `expected.json`: Delta tables by Spark, and the rows Spark reads.

Needs Java 17 and `pip install pyspark==4.1.1` in an environment of its own; Spark fetches
`io.delta:delta-spark_4.1_2.13:4.3.0` from Maven. Run it as `python make.py` after a change of
`SHAPES`, with the names of those that changed; the test reads only what it wrote.
"""

import json
import math
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

os.environ["TZ"] = "UTC"

HERE = Path(__file__).parent
DELTA = "io.delta:delta-spark_4.1_2.13:4.3.0"
ELSEWHERE = "/golden-tables"
"""Stands in the logs where this machine's folder stood; the test puts its own folder there."""
SETTINGS = {
    "spark.jars.packages": DELTA,
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "1",
    "spark.default.parallelism": "1",
    "spark.ui.enabled": "false",
    "spark.databricks.delta.retentionDurationCheck.enabled": "false",
    "spark.databricks.delta.vacuum.parallelDelete.enabled": "false",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.readSideCharPadding": "false",
    "spark.sql.parquet.int96RebaseModeInWrite": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
    "spark.sql.parquet.int96RebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
}
ORDERS = """create table {t} (order_id bigint, state string, amount decimal(12, 2)) using delta"""
SOME = "insert into {t} values (1, 'new', 1.50), (2, null, 2.50), (3, 'paid', -3.25)"
MORE = "insert into {t} values (4, 'new', 4.00)"
TYPES = """a_byte tinyint, a_short smallint, an_int int, a_long bigint, a_float float,
    a_double double, a_bool boolean, a_text string, some_bytes binary, a_date date,
    a_time timestamp, a_decimal decimal(20, 4)"""

SHAPES: dict[str, list[str]] = {
    "plain": [ORDERS, SOME, MORE],
    "empty": [ORDERS],
    "emptied": [ORDERS, SOME, "delete from {t}"],
    "no_stats": [ORDERS + " tblproperties ('delta.dataSkippingNumIndexedCols' = '0')", SOME, MORE],
    "few_stats": [ORDERS + " tblproperties ('delta.dataSkippingStatsColumns' = 'state')", SOME],
    "many_files": [
        "set spark.sql.files.maxRecordsPerFile=1",
        "create table {t} using delta as select id as n, id % 3 as m from range(70)",
    ],
    "codecs": [
        ORDERS,
        *(
            step
            for codec in ("gzip", "zstd", "uncompressed", "snappy", "lz4_raw")
            for step in (f"set spark.sql.parquet.compression.codec={codec}", SOME)
        ),
    ],
    "primitives": [
        f"create table {{t}} ({TYPES}) using delta",
        """insert into {t} values
            (-128, -32768, -2147483648, -9223372036854775808, float('-3.4028235e38'),
             double('-1.7976931348623157e308'), false, '', x'', date'0001-01-01',
             timestamp'1970-01-01 00:00:00', -9999999999999999.9999),
            (127, 32767, 2147483647, 9223372036854775807, float('1.4e-45'), double('4.9e-324'),
             true, 'tab\\tnull\\0 ü 😀', x'00ff', date'9999-12-31',
             timestamp'2038-01-19 03:14:07.999999', 9999999999999999.9999),
            (null, null, null, null, null, null, null, null, null, null, null, null)""",
    ],
    "floats": [
        "create table {t} (n int, x float, y double) using delta",
        """insert into {t} values (1, float('nan'), double('nan')), (4, -0.0, -0.0),
            (2, float('infinity'), double('infinity')), (5, null, null),
            (3, float('-infinity'), double('-infinity')), (6, 1.5, 1.5)""",
    ],
    "decimals": [
        """create table {t} (a decimal(1, 0), b decimal(4, 4), c decimal(9, 2), d decimal(10, 3),
            e decimal(18, 0), f decimal(19, 9), g decimal(38, 0), h decimal(38, 38)) using delta""",
        """insert into {t} select 9, 0.9999, 1234567.89, 1234567.891, 999999999999999999,
            1234567890.123456789, 99999999999999999999999999999999999999, 0.1""",
        """insert into {t} select -9, -0.0001, -0.01, -0.001, -1, -0.000000001, -1,
            -0.99999999999999999999999999999999999999""",
        "insert into {t} values (null, null, null, null, null, null, null, null)",
        "insert into {t} values (0, 0, 0, 0, 0, 0, 0, 0)",
    ],
    "ancient_dates": [
        "create table {t} (n int, day date) using delta",
        """insert into {t} values (1, date'0001-01-01'), (2, date'1582-10-04'),
            (3, date'1582-10-15'), (4, date'1969-12-31'), (5, date'9999-12-31')""",
    ],
    **{
        f"timestamps_{kind.lower()}": [
            f"set spark.sql.parquet.outputTimestampType={kind}",
            "create table {t} (n int, at timestamp) using delta",
            """insert into {t} values (1, timestamp'1582-10-04 23:59:59'),
                (2, timestamp'1900-01-01 00:00:00.123'), (3, timestamp'1969-12-31 23:59:59.999'),
                (4, timestamp'2024-03-31 01:30:00+02:00'), (5, null),
                (6, timestamp'2262-04-11 23:47:16.854')""",
        ]
        for kind in ("INT96", "TIMESTAMP_MICROS", "TIMESTAMP_MILLIS")
    },
    "timestamps_far": [
        "create table {t} (n int, at timestamp) using delta",
        """insert into {t} values (1, timestamp'0001-01-01 00:00:00'),
            (2, timestamp'9999-12-31 23:59:59.999999'), (3, timestamp'1677-09-21 00:00:00')""",
    ],
    "timestamp_ntz": [
        "create table {t} (n int, at timestamp_ntz) using delta",
        """insert into {t} values (1, timestamp_ntz'1582-10-04 00:00:00'), (2, null),
            (3, timestamp_ntz'2024-03-31 02:30:00.000001'),
            (4, timestamp_ntz'9999-12-31 23:59:59')""",
    ],
    "nested": [
        """create table {t} (n int, s struct<a: int, b: struct<c: string, d: array<int>>>,
            l array<struct<x: int, y: decimal(5, 2)>>, m map<string, array<int>>) using delta""",
        """insert into {t} values
            (1, struct(1, struct('x', array(1, null))), array(struct(1, 1.5), null),
             map('k', array(1), 'l', null)),
            (2, struct(null, null), array(), map()), (3, null, null, null)""",
    ],
    "nested_evolved": [
        "create table {t} (n int, s struct<a: int>, l array<struct<x: int>>) using delta",
        "insert into {t} values (1, struct(1), array(struct(1)))",
        "alter table {t} add columns (s.b string, l.element.y int after x)",
        "insert into {t} values (2, struct(2, 'b'), array(struct(2, 3)))",
    ],
    "legacy_parquet": [
        "set spark.sql.parquet.writeLegacyFormat=true",
        """create table {t} (n int, d decimal(9, 2), e decimal(18, 2), l array<int>,
            m map<string, int>) using delta""",
        "insert into {t} values (1, 1.25, -2.5, array(1, null, 3), map('a', 1)), "
        "(2, null, null, null, null)",
    ],
    "nested_times": [
        "create table {t} (n int, Mixed struct<At: timestamp, `x.y`: int>, l array<timestamp>)"
        " using delta",
        "insert into {t} values (1, struct(timestamp'2024-01-02 03:04:05', 1),"
        " array(timestamp'1969-12-31 23:59:59'))",
    ],
    "text_kinds": [
        "create table {t} (c char(5), v varchar(5), s string) using delta",
        "insert into {t} values ('ab', 'ab', 'ab'), (null, null, null)",
    ],
    "collated": [
        "set spark.databricks.delta.schema.typeCheck.enabled=false",
        "create table {t} (n int, s string collate UTF8_LCASE) using delta",
        "insert into {t} values (1, 'a'), (2, 'A'), (3, null)",
    ],
    "void_column": [
        "create table {t} using delta as select 1 as n, null as nothing, 'x' as s",
    ],
    "partition_int_date": [
        "create table {t} (n int, i int, d date) using delta partitioned by (i, d)",
        """insert into {t} values (1, 7, date'2024-01-01'), (2, -7, date'1582-10-04'),
            (3, null, null), (4, 0, date'9999-12-31')""",
    ],
    "partition_types": [
        f"create table {{t}} (n int, {TYPES}) using delta partitioned by "
        "(a_byte, a_short, an_int, a_long, a_float, a_double, a_bool, a_text, a_date, a_time,"
        " a_decimal)",
        """insert into {t} values (1, 1, 2, 3, 4, 1.5, 2.5, true, 'x', x'01', date'2024-01-02',
            timestamp'2024-01-02 03:04:05.678901', 1.2500),
            (2, -1, -2, -3, -4, -1.5, -2.5, false, 'y', null, date'1969-12-31',
             timestamp'1969-12-31 23:59:59.5', -0.0001),
            (3, null, null, null, null, null, null, null, null, null, null, null, null)""",
    ],
    "partition_floats": [
        "create table {t} (n int, x double) using delta partitioned by (x)",
        "insert into {t} values (1, double('nan')), (2, double('infinity')), (3, 0.1), (4, 1e300)",
    ],
    "partition_ntz": [
        "create table {t} (n int, at timestamp_ntz) using delta partitioned by (at)",
        """insert into {t} values (1, timestamp_ntz'2024-03-31 02:30:00'), (2, null),
            (3, timestamp_ntz'1969-12-31 23:59:59.000001')""",
    ],
    "partition_text": [
        "create table {t} (n int, label string) using delta partitioned by (label)",
        r"""insert into {t} values (1, 'a b'), (2, 'a/b'), (3, 'a=b'), (4, '100%'), (5, '%20'),
            (6, 'it''s'), (7, 'say "hi"'), (8, 'Ünï/😀'), (9, ''), (10, null), (11, 'null'),
            (12, '007'), (13, ' 7 '), (14, 'a+b&c#d?e'), (15, 'a\\b'), (16, '[x]*'), (17, 'a:b'),
            (18, '..'), (19, 'line
break'), (20, '2024-01-01'), (21, 'true')""",
    ],
    "partition_default_name": [
        "create table {t} (n int, label string) using delta partitioned by (label)",
        "insert into {t} values (1, '__HIVE_DEFAULT_PARTITION__'), (2, null)",
    ],
    "partition_name_case": [
        "create table {t} (n int, BarFoo int, `a b` int) using delta partitioned by (BarFoo)"
        " tblproperties ('delta.columnMapping.mode' = 'name')",
        "insert into {t} values (1, 10, 5), (2, 20, 6)",
    ],
    "partition_upper_case": [
        "create table {t} (N int, BarFoo int) using delta partitioned by (BarFoo)",
        "insert into {t} values (1, 10), (2, 20)",
    ],
    "partition_odd_name": [
        "create table {t} (n int, `größe.x'y` int) using delta partitioned by (`größe.x'y`)",
        "insert into {t} values (1, 10), (2, null)",
    ],
    "partition_first_column": [
        "create table {t} (p int, n int, q int) using delta partitioned by (q, p)",
        "insert into {t} values (1, 2, 3), (4, 5, 6)",
    ],
    "partition_evolved": [
        "create table {t} (n bigint, p int) using delta partitioned by (p)",
        "insert into {t} values (1, 1), (2, null)",
        "alter table {t} add column (s string)",
        "insert into {t} values (3, 1, 'x')",
    ],
    "repartitioned": [
        "create table {t} (n int, p int) using delta partitioned by (p)",
        "insert into {t} values (1, 1), (2, 2)",
        "create or replace table {t} using delta partitioned by (n) as select 3 as p, 4 as n",
    ],
    "evolved": [
        ORDERS,
        SOME,
        "alter table {t} add column (note string)",
        "insert into {t} values (4, 'new', 4.0, 'hi')",
        "alter table {t} add column (first int first)",
        "insert into {t} values (5, 5, 'new', 5.0, 'ho')",
    ],
    "reordered": [
        ORDERS,
        SOME,
        "alter table {t} alter column amount first",
        "insert into {t} values (4.0, 4, 'new')",
    ],
    "retyped": [
        "create table {t} using delta as select 1 as n, 'old' as s",
        "create or replace table {t} using delta as select 'text' as n, 2 as extra",
    ],
    "odd_column_names": [
        """create table {t} (`a.b` int, `q"q` int, `it's` int, `größe` int, `from` int, `x-y` int,
            `%41` int, `_delta` int, `[z]` int) using delta""",
        "insert into {t} values (1, 2, 3, 4, 5, 6, 7, 8, 9)",
    ],
    "mapping_name": [
        "create table {t} (`a b` int, `c;d` string, gone int) using delta"
        " tblproperties ('delta.columnMapping.mode' = 'name')",
        "insert into {t} values (1, 'x', 9)",
        "alter table {t} rename column `a b` to `b a`",
        "alter table {t} drop column gone",
        "alter table {t} add column (gone string)",
        "insert into {t} values (2, 'y', 'back')",
    ],
    "mapping_swapped": [
        "create table {t} (a int, b int) using delta"
        " tblproperties ('delta.columnMapping.mode' = 'name')",
        "insert into {t} values (1, 2)",
        "alter table {t} rename column a to c",
        "alter table {t} rename column b to a",
        "alter table {t} rename column c to b",
        "insert into {t} values (3, 4)",
    ],
    "mapping_id": [
        "create table {t} (a int, s struct<x: int, y: string>) using delta"
        " tblproperties ('delta.columnMapping.mode' = 'id')",
        "insert into {t} values (1, struct(1, 'one'))",
        "alter table {t} rename column a to b",
        "alter table {t} rename column s.x to z",
        "insert into {t} values (2, struct(2, 'two'))",
    ],
    "mapping_upgraded_legacy": [
        "create table {t} (a int, b int) using delta"
        " tblproperties ('delta.minReaderVersion' = '1', 'delta.minWriterVersion' = '2')",
        "insert into {t} values (1, 2)",
        "alter table {t} set tblproperties ('delta.minReaderVersion' = '2',"
        " 'delta.minWriterVersion' = '5', 'delta.columnMapping.mode' = 'name')",
        "alter table {t} rename column a to c",
        "alter table {t} rename column b to a",
        "insert into {t} values (3, 4)",
    ],
    "mapping_partitioned": [
        "create table {t} (n int, p int, q string) using delta partitioned by (p)"
        " tblproperties ('delta.columnMapping.mode' = 'name')",
        "insert into {t} values (1, 10, 'x'), (2, null, 'y')",
        "alter table {t} rename column p to part",
        "insert into {t} values (3, 30, 'z')",
    ],
    "deletion_vectors": [
        "create table {t} using delta tblproperties ('delta.enableDeletionVectors' = 'true')"
        " as select id as n, id * 2 as m from range(10)",
        "delete from {t} where n in (3, 5)",
        "update {t} set m = -1 where n = 7",
        "delete from {t} where n = 0",
    ],
    "deletion_vectors_partitioned": [
        "create table {t} using delta partitioned by (p) tblproperties"
        " ('delta.enableDeletionVectors' = 'true', 'delta.checkpointInterval' = '3')"
        " as select id as n, cast(id % 2 as int) as p from range(10)",
        *(f"delete from {{t}} where n = {n}" for n in range(5)),
    ],
    "deletion_vectors_mapped": [
        "create table {t} using delta tblproperties ('delta.enableDeletionVectors' = 'true',"
        " 'delta.columnMapping.mode' = 'name') as select id as n, id * 2 as m from range(10)",
        "alter table {t} rename column m to k",
        "delete from {t} where n in (3, 5)",
    ],
    "deletion_vectors_unused": [
        ORDERS + " tblproperties ('delta.enableDeletionVectors' = 'true')",
        SOME,
    ],
    "deletion_vectors_dropped": [
        "create table {t} using delta tblproperties ('delta.enableDeletionVectors' = 'true')"
        " as select id as n from range(10)",
        "delete from {t} where n = 3",
        "alter table {t} set tblproperties ('delta.enableDeletionVectors' = 'false')",
        "reorg table {t} apply (purge)",
    ],
    "type_widening": [
        "create table {t} (b tinyint, i int, f float, d decimal(5, 2)) using delta"
        " tblproperties ('delta.enableTypeWidening' = 'true')",
        "insert into {t} values (1, 2, 1.5, 3.25)",
        "alter table {t} alter column b type int",
        "alter table {t} alter column i type bigint",
        "alter table {t} alter column f type double",
        "alter table {t} alter column d type decimal(12, 4)",
        "insert into {t} values (100000, 5000000000, 1e300, 12345678.1234)",
    ],
    "type_widened_long_to_decimal": [
        "create table {t} (n bigint, m int) using delta"
        " tblproperties ('delta.enableTypeWidening' = 'true')",
        "insert into {t} values (9223372036854775807, 2147483647)",
        "alter table {t} alter column n type decimal(22, 2)",
        "alter table {t} alter column m type double",
        "insert into {t} values (1.25, 0.5)",
    ],
    "generated": [
        "create table {t} (at timestamp, day date) using delta partitioned by (day)",
        "insert into {t} values (timestamp'2024-01-02 23:00:00', date'2024-01-02')",
    ],
    "identity": [
        "create table {t} (n bigint, s string) using delta",
        "insert into {t} values (1, 'a')",
    ],
    "defaults": [
        "create table {t} (n int, s string default 'none') using delta"
        " tblproperties ('delta.feature.allowColumnDefaults' = 'supported')",
        "insert into {t} (n) values (1)",
    ],
    "constraints": [
        "create table {t} (n int not null, s string) using delta",
        "alter table {t} add constraint positive check (n > 0)",
        "insert into {t} values (1, 'x')",
    ],
    "change_data_feed": [
        ORDERS + " tblproperties ('delta.enableChangeDataFeed' = 'true')",
        SOME,
        "update {t} set state = 'seen' where order_id = 1",
        "delete from {t} where order_id = 3",
    ],
    "row_tracking": [
        ORDERS + " tblproperties ('delta.enableRowTracking' = 'true')",
        SOME,
        "update {t} set state = 'seen' where order_id = 1",
    ],
    "clustered": [
        "create table {t} (n int, s string) using delta cluster by (n)",
        "insert into {t} values (1, 'a'), (2, 'b')",
        "optimize {t}",
    ],
    "in_commit_timestamps": [
        ORDERS + " tblproperties ('delta.enableInCommitTimestamps' = 'true')",
        SOME,
        MORE,
    ],
    "vacuum_protocol_check": [
        ORDERS + " tblproperties ('delta.feature.vacuumProtocolCheck' = 'supported')",
        SOME,
    ],
    "append_only": [ORDERS + " tblproperties ('delta.appendOnly' = 'true')", SOME],
    "optimized": [ORDERS, SOME, MORE, "optimize {t}"],
    "vacuumed": [ORDERS, SOME, MORE, "optimize {t}", "vacuum {t} retain 0 hours"],
    "restored": [
        ORDERS,
        SOME,
        "delete from {t} where order_id = 1",
        "restore table {t} to version as of 1",
    ],
    "merged": [
        ORDERS,
        SOME,
        """merge into {t} using (select 1 as order_id union all select 9) s
            on {t}.order_id = s.order_id when matched then update set state = 'merged'
            when not matched then insert (order_id) values (s.order_id)""",
    ],
    "checkpoint": [
        ORDERS + " tblproperties ('delta.checkpointInterval' = '2')",
        SOME,
        MORE,
        MORE,
        MORE,
    ],
    "checkpoint_only": [
        ORDERS + " tblproperties ('delta.checkpointInterval' = '2')",
        SOME,
        MORE,
    ],
    "checkpoint_trimmed": [
        ORDERS + " tblproperties ('delta.checkpointInterval' = '2')",
        SOME,
        MORE,
        MORE,
        MORE,
        MORE,
    ],
    "checkpoint_struct_stats": [
        "create table {t} (n int, at timestamp, p date) using delta partitioned by (p)"
        " tblproperties ('delta.checkpointInterval' = '1',"
        " 'delta.checkpoint.writeStatsAsStruct' = 'true',"
        " 'delta.checkpoint.writeStatsAsJson' = 'false')",
        "insert into {t} values (1, timestamp'2024-01-01 00:00:00', date'2024-01-01'),"
        " (2, null, null)",
        "insert into {t} values (3, null, date'2024-01-03')",
    ],
    "checkpoint_multi_part": [
        "set spark.databricks.delta.checkpoint.partSize=2",
        ORDERS + " tblproperties ('delta.checkpointInterval' = '4')",
        SOME,
        MORE,
        MORE,
        MORE,
        MORE,
    ],
    **{
        f"checkpoint_v2_{kind}": [
            f"set spark.databricks.delta.checkpointV2.topLevelFileFormat={kind}",
            ORDERS + " tblproperties ('delta.checkpointPolicy' = 'v2',"
            " 'delta.checkpointInterval' = '2')",
            SOME,
            MORE,
            MORE,
        ]
        for kind in ("json", "parquet")
    },
    "log_compacted": [ORDERS, SOME, MORE, "delete from {t} where order_id = 1"],
    "foreign_files": [ORDERS, SOME, MORE],
    "variant": [
        "create table {t} (n int, v variant) using delta",
        """insert into {t} select 1, parse_json('{{"a": [1, "x", null], "b": 1.5}}')""",
        "insert into {t} values (2, null)",
    ],
    "variant_shredded": [
        "create table {t} (n int, v variant) using delta"
        " tblproperties ('delta.enableVariantShredding' = 'true')",
        """insert into {t} select id, parse_json('{{"a": 1, "b": "x"}}') from range(3)""",
    ],
    "converted": [
        "create table {t} using parquet as select id as n, 'x' as s from range(3)",
        "convert to delta parquet.`{path}`",
        "insert into delta.`{path}` values (9, 'y')",
    ],
    "converted_partitioned": [
        "create table {t} using parquet partitioned by (p)"
        " as select id as n, cast(id % 2 as int) as p from range(3)",
        "convert to delta parquet.`{path}` partitioned by (p int)",
    ],
    "clone_source": [ORDERS, SOME],
    "shallow_clone": ["create table {t} shallow clone delta.`{out}/clone_source`", MORE],
}
"""Per table the statements that make it; `{t}` is the table, `{path}` its folder."""


def trim(folder: Path) -> None:
    """Leave what log clean-up leaves: the last checkpoint and what is after it."""
    newest = max(int(file.name[:20]) for file in folder.glob("_delta_log/*.checkpoint.parquet"))
    for file in folder.glob("_delta_log/*"):
        if file.name[:20].isdigit() and int(file.name[:20]) < newest:
            file.unlink()


def leave_checkpoint_only(folder: Path) -> None:
    """Also the commit of the checkpoint's version is gone."""
    trim(folder)
    for file in folder.glob("_delta_log/*.json"):
        file.unlink()


def compact_log(folder: Path) -> None:
    """Add the log compaction file of commits 1 to 2, as the protocol describes it."""
    actions = [
        line
        for version in (1, 2)
        for line in (folder / f"_delta_log/{version:020d}.json").read_text().splitlines()
        if "commitInfo" not in line
    ]
    name = f"_delta_log/{1:020d}.{2:020d}.compacted.json"
    (folder / name).write_text("\n".join(actions) + "\n")


def add_foreign_files(folder: Path) -> None:
    for name in (
        "README.txt",
        "_delta_log/notes.txt",
        "_delta_log/.00000.json.tmp",
        ".DS_Store",
        "_temporary/0/part.parquet",
        "part-00099.parquet",
        "_delta_log/_staged/x.json",
    ):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("not of this table")


def describe(writer: int, column: str, metadata: dict[str, Any]) -> Callable[[Path], None]:
    """As a writer of that version describes a column; Spark's SQL makes none in a path's table."""

    def edit(folder: Path) -> None:
        log = folder / f"_delta_log/{0:020d}.json"
        actions = [json.loads(line) for line in log.read_text().splitlines()]
        for action in actions:
            action.get("protocol", {})["minWriterVersion"] = writer
            if table := action.get("metaData"):
                schema = json.loads(table["schemaString"])
                for field in schema["fields"]:
                    field["metadata"] |= metadata if field["name"] == column else {}
                table["schemaString"] = json.dumps(schema)
        log.write_text("".join(json.dumps(action) + "\n" for action in actions))
        for checksum in folder.glob("_delta_log/*.crc"):
            checksum.unlink()

    return edit


AFTERWARDS: dict[str, Callable[[Path], None]] = {
    "checkpoint_only": leave_checkpoint_only,
    "checkpoint_trimmed": trim,
    "log_compacted": compact_log,
    "generated": describe(4, "day", {"delta.generationExpression": "CAST(at AS DATE)"}),
    "identity": describe(
        6,
        "n",
        {
            "delta.identity.start": 1,
            "delta.identity.step": 1,
            "delta.identity.highWaterMark": 1,
            "delta.identity.allowExplicitInsert": False,
        },
    ),
    "foreign_files": add_foreign_files,
}


def plain(value: Any) -> Any:
    """A value as JSON holds it without loss; `test_golden.py` says the same of what it reads."""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, "asDict"):
        return {name: plain(item) for name, item in value.asDict().items()}
    if isinstance(value, dict):
        return sorted([plain(key), plain(item)] for key, item in value.items())
    return value


def read(spark: Any, path: str, version: int) -> dict[str, Any]:
    """What Spark reads at a version: columns, types and rows; or its error."""
    try:
        frame = spark.read.format("delta").option("versionAsOf", version).load(path)
        columns = [[field.name, field.dataType.simpleString()] for field in frame.schema]
        listed = [_TOLD.get(kind, "{0}").format(_quoted(name)) for name, kind in columns]
        rows = [[plain(value) for value in row] for row in frame.selectExpr(*listed).collect()]
    except Exception as error:
        return {"error": re.sub(r"\s+", " ", str(error))[:80]}
    return {"columns": columns, "rows": sorted(rows, key=json.dumps)}


_TOLD = {"variant": "to_json({0})", "timestamp": "unix_micros({0})"}
"""Of columns whose values Python cannot hold: how JSON does."""


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def versions(folder: Path) -> Iterator[int]:
    """Versions that the log still reaches."""
    log = folder / "_delta_log"
    commits = {int(f.name[:20]) for f in log.glob("*.json") if re.fullmatch(r"\d{20}", f.stem)}
    checkpoints = {int(f.name[:20]) for f in log.glob("*.checkpoint*.parquet")}
    yield from sorted(commits | checkpoints)


def main() -> None:
    from pyspark.sql import SparkSession

    wanted = sys.argv[1:] or list(SHAPES)
    out = Path(tempfile.mkdtemp(prefix="golden"))
    expected = _kept(out, wanted) if sys.argv[1:] else {}
    builder = SparkSession.builder.master("local[1]").config(
        "spark.sql.warehouse.dir", str(out / "warehouse")
    )
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    for shape in wanted:
        folder = out / shape
        session = spark.newSession()
        table = f"delta.`{folder}`"
        for number, statement in enumerate(SHAPES[shape]):
            text = statement
            if number == 0 and " using parquet" in text:
                text = text.replace("using parquet", f"using parquet location '{folder}'")
                text = text.replace("{t}", shape)
            try:
                session.sql(text.format(t=table, path=folder, out=out))
            except Exception as error:
                print(f"{shape}: {statement[:60]}: {str(error)[:300]}", file=sys.stderr)
                break
        spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
        session = spark.newSession()
        truth = {version: read(session, str(folder), version) for version in versions(folder)}
        if shape in AFTERWARDS:
            AFTERWARDS[shape](folder)
        expected[shape] = {str(version): truth[version] for version in versions(folder)}
        print(shape, {v: len(r.get("rows", ())) for v, r in expected[shape].items()})
    spark.stop()
    for file in out.rglob(".*.crc"):
        file.unlink()
    for file in out.rglob("_delta_log/*.json"):
        file.write_text(file.read_text().replace(str(out), ELSEWHERE))
    shutil.rmtree(out / "warehouse", ignore_errors=True)
    with tarfile.open(HERE / "tables.tar.xz", "w:xz") as archive:
        for shape in sorted(expected):
            archive.add(out / shape, shape, filter=_anonymous)
    lines = [
        f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in sorted(expected.items())
    ]
    (HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    shutil.rmtree(out)


def _kept(out: Path, but: list[str]) -> dict[str, Any]:
    """Lay out the tables of last time that are not made anew; what is expected of them."""
    with tarfile.open(HERE / "tables.tar.xz") as archive:
        members = [m for m in archive if m.name.partition("/")[0] not in but]
        archive.extractall(out, members, filter="data")
    known = json.loads((HERE / "expected.json").read_text())
    return {shape: told for shape, told in known.items() if shape in SHAPES and shape not in but}


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
