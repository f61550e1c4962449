"""Messages become rows: each by itself, and exactly."""

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarn.ingestion.declarations.stream import StreamTable
from tarn.ingestion.streams.formats import Decoded
from tarn.ingestion.streams.formats.json import JsonDecoder
from tarn.ingestion.types import exact_cast, named

DECLARED = {"amount": "decimal(12,2)", "order_id": "bigint", "note": "text", "rate": "double"}


def json_decoder(**columns: str) -> JsonDecoder:
    return JsonDecoder(StreamTable(columns=columns))


def decoded(*messages: str | bytes | None, **columns: str) -> Decoded:
    values = [each.encode() if isinstance(each, str) else each for each in messages]
    return json_decoder(**columns).decode(values, None)


def contracted(got: Decoded, kinds: dict[str, pa.DataType]) -> dict[int, dict[str, Any]]:
    """Values by message once the contract has cast them; what it would reject says so."""
    found: dict[int, dict[str, Any]] = {index: {} for index in got.taken.to_pylist()}
    for name, column in zip(got.rows.schema.names, got.rows.columns, strict=True):
        kind = kinds.get(name) or got.types.get(name) or column.type
        cast, bad = exact_cast(column, kind)
        for i, index in enumerate(found):
            value = "bad" if bad is not None and bad[i].as_py() else cast[i].as_py()
            if value is not None:
                found[index][name] = value
    return found


def one_by_one(values: Sequence[bytes | None], kinds: dict[str, pa.DataType]) -> tuple[Any, Any]:
    """Each message by a decoder of its own, as if it came alone."""
    rows: dict[int, dict[str, Any]] = {}
    reasons = {}
    columns = {name: DECLARED[name] for name in kinds if name in DECLARED}
    for index, value in enumerate(values):
        got = json_decoder(**columns).decode([value], pa.schema(list(kinds.items())))
        for each in got.rejected:
            reasons[index] = each.reason
        for row in contracted(got, kinds).values():
            rows[index] = row
    return rows, reasons


GOOD = '{"order_id": 1, "note": "x"}'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "no value (a tombstone)"),
        (b"", "an empty message"),
        (b" \n", "an empty message"),
        ("[1]", "no object"),
        ("1", "no object"),
        ("null", "no object"),
        ("{}", "an object without keys"),
        ("{ }", "an object without keys"),
        ('{"a": 1', "no JSON: Expecting ',' delimiter"),
        ('{"a": 1}{"a": 2}', "no JSON: Extra data"),
        ('{"a": 1}\n{"a": 2}', "no JSON: Extra data"),
        ('{"a": 1},', "no JSON: Extra data"),
        ('{"a": 1} x', "no JSON: Extra data"),
        ('{"a": NaN}', "NaN is no JSON"),
        ('{"a": -Infinity}', "-Infinity is no JSON"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' is given twice"),
        ('{"OrderId": 1, "order_id": 2}', "key 'order_id' is given twice"),
        ('{"": 1}', "key '' is no name"),
        ('{"_load_id": "x"}', "a field may not be called _load_id"),
        ('{"_offset": 7}', "a field may not be called _offset"),
        (b'{"a": "\xff"}', "bytes that are not UTF-8"),
        ('{"a": "\\ud800"}', "half of a character (a lone surrogate)"),
        ('{"a": "x\ny"}', "no JSON: Invalid control character at"),
        ('{"a": ' + "[" * 60 + "]" * 60 + "}", "nested more than 50 deep"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        ('{"order_id": 9223372036854775808}', "order_id: 9223372036854775808 is not bigint"),
        ('{"order_id": 1e30}', "order_id: 1e30 is not bigint"),
        ('{"rate": 1e400}', "rate: 1e400 is not double"),
        ('{"rate": 1e-400}', "rate: 1e-400 is not double"),
        ('{"rate": 9007199254740993}', "rate: 9007199254740993 is not double"),
    ],
)
def test_a_bad_message_is_told_and_bends_no_other(bad: str | bytes | None, reason: str) -> None:
    got = decoded(GOOD, bad, '{"order_id": 2, "note": "y"}', **DECLARED)
    assert [(each.index, each.reason) for each in got.rejected] == [(1, reason)]
    assert got.taken.to_pylist() == [0, 2]
    assert got.rows["order_id"].to_pylist() == [1, 2]
    assert got.rows["note"].to_pylist() == ["x", "y"]


def test_messages_that_only_together_are_json_are_each_bad() -> None:
    got = decoded(GOOD, '{"a": 1,', '"b": 2}{"a": 3}', GOOD)
    assert [each.index for each in got.rejected] == [1, 2]
    assert got.taken.to_pylist() == [0, 3]
    got = decoded('{"a": {"x": 1}', '{"b": 1}}', '{"a": 1}}{"a": {"b": 1}')
    assert [each.index for each in got.rejected] == [0, 1, 2]


def test_values_are_what_the_message_says() -> None:
    got = decoded(
        '\ufeff{"order_id": 1, "amount": 0.1}\r\n',
        '{"order_id": 2,\n "amount": 12345678.90, "note": 1.10}',
        '{"orderId": 3.0, "amount": "7.5", "note": "2017-01-01T00:00:00Z"}',
        '{"order_id": "4", "amount": 1.005, "note": true}',
        '{"order_id": null, "amount": 100000000000000000000, "note": [1.10, {"b": 2, "a": null}]}',
        **DECLARED,
    )
    assert not got.rejected
    assert got.rows.schema.names == ["order_id", "amount", "note", "rate"]
    kinds = {name: named(kind) for name, kind in DECLARED.items()}
    assert contracted(got, kinds) == {
        0: {"order_id": 1, "amount": Decimal("0.10")},
        1: {"order_id": 2, "amount": Decimal("12345678.90"), "note": "1.10"},
        2: {"order_id": 3, "amount": Decimal("7.50"), "note": "2017-01-01T00:00:00Z"},
        3: {"order_id": 4, "amount": "bad", "note": "true"},
        4: {"amount": "bad", "note": '[1.10,{"b":2,"a":null}]'},
    }


def test_a_decimal_has_no_more_digits_than_its_column() -> None:
    got = decoded('{"amount": 9999999999}', '{"amount": 10000000000}', **DECLARED)
    assert [row.get("amount") for row in contracted(got, KINDS).values()] == [9999999999, "bad"]
    got = decoded('{"amount": 10000000000}', **DECLARED)
    assert [row.get("amount") for row in contracted(got, KINDS).values()] == ["bad"]


def test_objects_become_columns_and_lists_text() -> None:
    got = decoded(
        '{"id": "a", "page": {"Type": "home", "at": {"x": 1.5}}, "tags": ["é", "2017-01-01"]}',
        '{"id": "b", "page": null, "tags": []}',
        '{"id": "c", "page": {"Type": null}, "extra": 1}',
    )
    assert got.rows.to_pylist() == [
        {
            "id": "a",
            "page__type": "home",
            "page__at__x": 1.5,
            "tags": '["é","2017-01-01"]',
            "extra": None,
        },
        {"id": "b", "page__type": None, "page__at__x": None, "tags": "[]", "extra": None},
        {"id": "c", "page__type": None, "page__at__x": None, "tags": None, "extra": 1},
    ]
    assert got.spelt["page__type"] == "page.Type"


def test_nulls_at_the_beginning_of_lists_are_kept() -> None:
    got = decoded('{"a": [null, 0], "b": 1}', '{"a": [null, null, 7], "b": 2}', '{"a": [3]}')
    assert got.rows["a"].to_pylist() == ["[null,0]", "[null,null,7]", "[3]"]


def test_rows_without_any_value_are_rows() -> None:
    got = decoded('{"a": null}', '{"a": {}}')
    assert got.rows.num_rows == 2
    assert got.rows.num_columns == 0


def test_what_is_rare_in_a_new_column_is_text_and_told_what_it_should_be() -> None:
    messages = [f'{{"speed": {n}.5}}' for n in range(2000)]
    messages[0] = '{"speed": "fast"}'
    got = decoded(*messages)
    assert got.types == {"speed": pa.float64()}
    assert got.rows["speed"].to_pylist()[:2] == ["fast", "1.5"]


def test_a_renamed_field_is_read_as_its_column() -> None:
    spec = StreamTable.model_validate(
        {"columns": {"amount": "decimal(9,2)"}, "contract": {"renamed": {"sum": "amount"}}}
    )
    got = JsonDecoder(spec).decode([b'{"sum": 0.30}'], None)
    assert got.rows.to_pylist() == [{"sum": Decimal("0.30")}]


def test_the_same_whatever_came_before() -> None:
    decoder = json_decoder()
    list_of_objects = b'{"lines": [{"a": 1}], "at": "2017-01-01"}'
    first = decoder.decode([list_of_objects] * 3, None)
    again = decoder.decode([list_of_objects, b'{"lines": [1.10], "at": 5}', b'{"at": "x"}'], None)
    assert first.rows["lines"].to_pylist() == ['[{"a":1}]'] * 3
    assert again.rows["lines"].to_pylist() == ['[{"a":1}]', "[1.10]", None]
    assert again.rows["at"].to_pylist() == ["2017-01-01", "5", "x"]


KEYS = st.sampled_from(["order_id", "amount", "note", "rate", "other", "Other", "_load_id"])
NUMBERS = st.one_of(
    st.integers(-100, 100).map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, max_value=10**11).map(str),
    st.sampled_from(["1e3", "1E400", "-0", "-0.0", "1e-400", "01", "1.", "NaN", "0.1" + "0" * 30]),
)
TEXTS = st.one_of(
    st.text(max_size=6).map(json.dumps),
    st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['"12"', '"1.5"', '"2017-12-31T10:00:00.000Z"', '"2017-12-31"', '"\\ud83d"']),
)
LEAVES = st.one_of(NUMBERS, NUMBERS, TEXTS, TEXTS, st.sampled_from(["null", "true", "false"]))


def as_object(pairs: Sequence[tuple[str, str]]) -> str:
    return "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}"


def as_list(items: Sequence[str]) -> str:
    return f"[{','.join(items)}]"


SMALL = st.one_of(TEXTS, st.integers(-9, 9).map(str), st.sampled_from(["null", "true"]))
"""Of columns that nobody has typed: what is beyond their type hangs on what comes with it."""
LISTS = st.recursive(
    st.lists(LEAVES, max_size=3).map(as_list),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(as_list),
        st.lists(st.tuples(KEYS, inner), max_size=2).map(lambda pairs: as_list([as_object(pairs)])),
    ),
    max_leaves=3,
)
VALUES = st.recursive(
    st.one_of(SMALL, LISTS),
    lambda inner: st.lists(st.tuples(KEYS, inner), max_size=3).map(as_object),
    max_leaves=4,
)
OBJECTS = st.lists(st.tuples(KEYS, st.one_of(LEAVES, VALUES)), min_size=0, max_size=4).map(
    as_object
)
LIKELY = st.fixed_dictionaries(
    {"order_id": st.integers(0, 99).map(str), "note": st.just('"x"')},
    optional={"amount": NUMBERS, "rate": NUMBERS, "other": LEAVES},
).map(lambda found: as_object(list(found.items())))
BROKEN = st.one_of(
    st.none(),
    st.binary(max_size=8),
    st.tuples(OBJECTS, OBJECTS).map(lambda two: "\n".join(two).encode()),
    st.tuples(OBJECTS, st.integers(0, 30)).map(lambda cut: cut[0][: cut[1]].encode()),
    OBJECTS.map(lambda text: f"\ufeff {text}\n".encode()),
    st.sampled_from([b'{"a":1,', b'"b":2}{"a":3}', b"}", b"{", b'{"a":"', b'"}', b'{"a":[{']),
)
MESSAGES = st.lists(
    st.one_of(LIKELY.map(str.encode), LIKELY.map(str.encode), OBJECTS.map(str.encode), BROKEN),
    max_size=12,
)
KINDS = {name: named(kind) for name, kind in DECLARED.items()} | {"other": pa.string()}


@settings(max_examples=400, deadline=None)
@given(MESSAGES)
def test_a_batch_is_what_its_messages_are_alone(values: list[bytes | None]) -> None:
    rows, reasons = one_by_one(values, KINDS)
    got = json_decoder(**DECLARED).decode(values, pa.schema(list(KINDS.items())))
    assert {each.index: each.reason for each in got.rejected} == reasons
    kinds = {**KINDS, **{name: pa.string() for name in got.rows.schema.names if name not in KINDS}}
    assert _texts(contracted(got, kinds)) == _texts(rows)
    assert sorted([*rows, *reasons]) == list(range(len(values)))


def _texts(rows: dict[int, dict[str, Any]]) -> dict[int, dict[str, str]]:
    """Rows whose columns somebody has typed, in words: 1 is not 1.0, but -0.0 is 0.0."""
    return {
        index: {k: str(v or 0 if isinstance(v, float) else v) for k, v in row.items() if k in KINDS}
        for index, row in rows.items()
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(LIKELY, max_size=10))
def test_good_messages_are_what_any_reader_says(texts: list[str]) -> None:
    got = json_decoder().decode([text.encode() for text in texts], None)
    bad = {each.index for each in got.rejected}
    found = got.rows.to_pylist()
    for index, row in zip(got.taken.to_pylist(), found, strict=True):
        said = json.loads(texts[index])
        for name in ("order_id", "note"):
            assert row[name] == said[name]
    assert sorted([*bad, *got.taken.to_pylist()]) == list(range(len(texts)))
