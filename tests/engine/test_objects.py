"""Objects of unknown shape as tables: no value is another when it arrives."""

import json
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dlt
import pyarrow as pa
import pytest
from dlt.extract import DltSource
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tarn.ingestion.landed import Desk
from tarn.ingestion.objects import ROOT_ID, unpack
from tarn.storage.lake import Lake

_TEXTS = ["007", "0x10", " 7", "1_000", "inf", "NaN", "1.50", "true", "no", "\x01b", ""]
_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, 5, 2**53 + 1, 1.0, 2.5, 1e300, -0.1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(_TEXTS),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
)


def unpacked(values: list[Any]) -> tuple[pa.Table, pa.Table]:
    """The rows, and those of the list in each."""
    rows = [{"n": i, "x": x, "deep": {"x": x}, "many": [x]} for i, x in enumerate(values)]
    source = DltSource(dlt.Schema("api"), "api", [dlt.resource(rows, name="rows")])
    with TemporaryDirectory() as folder, closing(Desk(Lake(folder), Path(folder))) as desk:
        tables, rejected = unpack(source, "rows", Path(folder) / "dlt", {}, True, desk)
        assert not rejected
        root, child = (pa.Table.from_batches(each.batches()) for each in tables)
    return root, child


@given(st.lists(_SCALARS, min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
@example([2.5, 2**53 + 1])
@example([True, 5])
@example([5, "007", "0x10", "1_000"])
def test_no_value_of_an_undeclared_field_is_bent(values: list[Any]) -> None:
    """Each is what was sent, or its text."""
    root, child = unpacked(values)
    came = {row["n"]: row for row in root.to_pylist()}
    nested = dict(zip(child[ROOT_ID].to_pylist(), child["value"].to_pylist(), strict=True))
    for i, sent in enumerate(values):
        for got in (came[i]["x"], came[i]["deep__x"], nested[came[i]["_dlt_id"]]):
            if isinstance(got, str) and not isinstance(sent, str | bool):
                assert Decimal(got) == Decimal(repr(sent))
            elif isinstance(got, str):
                assert got == (sent if isinstance(sent, str) else json.dumps(sent))
            else:
                assert (got, isinstance(got, bool)) == (sent, isinstance(sent, bool))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**53 + 1, 5], pa.int64()),
        ([5, 2**53 + 1], pa.int64()),
        ([1, 2.5, 1e300], pa.float64()),
        ([2.5, 1], pa.float64()),
        ([True, False], pa.bool_()),
        (["7", "8"], pa.string()),
    ],
)
def test_a_column_has_the_type_that_holds_all_its_values(
    values: list[Any], kind: pa.DataType
) -> None:
    root, child = unpacked(values)
    assert root.schema.field("x").type == child.schema.field("value").type == kind
