"""Messages of Avro and protobuf become rows, by a schema in a file or in a registry."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from tarn.errors import TarnError
from tarn.ingestion.declarations import declare
from tarn.ingestion.declarations.stream import StreamTable
from tarn.ingestion.streams.decoding import Decoded, Decoder, RegistryAwayError, decoder
from tarn.settings import Settings
from tests.engine.registry import PASSWORD, USER, Registry, registry

AT = datetime(2017, 12, 31, 10, 0, 0, 123000, tzinfo=UTC)
NAIVE = AT.replace(tzinfo=None)
VALUE = SerializationContext("orders", MessageField.VALUE)


@pytest.fixture
def schemas() -> Iterator[Registry]:
    with registry() as running:
        yield running


def decoder_of(folder: Path, format: str, url: str = "", more: str = "") -> Decoder:
    """The decoder of a table whose declaration says this."""
    file = folder / "shop.yml"
    known = f"schema_registry: {{url: '{url}'{more}}}" if url else ""
    file.write_text(
        "system: shop\ndescription: For a test.\nowner: {name: Us, email: us@x.com}\nkind: kafka\n"
        f"connection:\n  bootstrap_servers: 127.0.0.1:1\n  {known}\n"
        f"tables:\n  orders:\n    format: {format}\n    columns: {{amount: 'decimal(12,2)'}}\n"
    )
    found = declare(file)
    home = Settings(folder, str(folder / "lake"), folder, {})
    spec = found.system.tables["orders"]
    assert isinstance(spec, StreamTable)
    return decoder(found, "orders", spec, home)


def avro(schema: dict[str, Any], record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": key, "type": kind} for key, kind in fields.items()],
    }


def logical(kind: str, of: str, **more: Any) -> dict[str, Any]:
    return {"type": of, "logicalType": kind, **more}


ORDER = record(
    "Order",
    orderId="long",
    amount=logical("decimal", "bytes", precision=12, scale=2),
    placedAt=logical("timestamp-millis", "long"),
    day=["null", logical("date", "int")],
    uid=logical("uuid", "string"),
    status={"type": "enum", "name": "Status", "symbols": ["PLACED", "PICKED"]},
    before=["null", "Status"],
    note=["null", "string"],
    either=["null", "int", "string"],
    delivery=["null", record("Delivery", latitude="double", van=["null", "string"])],
    lines={"type": "array", "items": record("Line", sku="string", price=["null", "double"])},
    tags={"type": "map", "values": logical("decimal", "bytes", precision=9, scale=3)},
    raw="bytes",
    clock=logical("time-millis", "int"),
)
ONE: dict[str, Any] = {
    "orderId": 2**60 + 1,
    "amount": Decimal("9999999999.99"),
    "placedAt": AT,
    "day": date(2017, 12, 31),
    "uid": UUID("12345678-1234-5678-1234-567812345678"),
    "status": "PICKED",
    "before": "PLACED",
    "note": "é",
    "either": 7,
    "delivery": {"latitude": 52.5, "van": None},
    "lines": [{"sku": "a", "price": 1.5}, {"sku": "b", "price": None}],
    "tags": {"x": Decimal("0.100")},
    "raw": b"\x00\xff",
    "clock": AT.time(),
}
ROW = {
    "order_id": 2**60 + 1,
    "amount": Decimal("9999999999.99"),
    "placed_at": NAIVE,
    "day": date(2017, 12, 31),
    "uid": "12345678-1234-5678-1234-567812345678",
    "status": "PICKED",
    "before": "PLACED",
    "note": "é",
    "either": "7",
    "delivery__latitude": 52.5,
    "delivery__van": None,
    "lines": '[{"sku":"a","price":1.5},{"sku":"b","price":null}]',
    "tags": '{"x":0.100}',
    "raw": b"\x00\xff",
    "clock": "10:00:00.123000",
}
EMPTY = {**ONE, "day": None, "note": None, "either": None, "delivery": None, "before": None}


def reasons(got: Decoded) -> dict[int, str]:
    return {each.index: each.reason for each in got.rejected}


def test_avro_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "order.avsc").write_text(json.dumps(ORDER))
    good, other = avro(ORDER, ONE), avro(ORDER, EMPTY)
    orders = decoder_of(tmp_path, "{type: avro, schema_file: order.avsc}")
    got = orders.decode([good, None, b"", other, good[:-3], good + b"x", b"\xff" * 9], None)
    assert got.rows.slice(0, 1).to_pylist() == [ROW]
    assert got.rows["delivery__latitude"].to_pylist() == [52.5, None]
    assert got.rows.schema.field("placed_at").type == pa.timestamp("us")
    assert got.taken.to_pylist() == [0, 3]
    assert got.spelt["delivery__van"] == "delivery.van"
    told = reasons(got)
    assert told[1] == "no value (a tombstone)"
    assert told[2] == "an empty message"
    assert told[4].startswith("it is not of its schema: ")
    assert told[5] == "it goes on for 1 bytes after its end"
    assert told[6].startswith("it is not of its schema: ")


def test_avro_by_a_registry_as_schemas_change(tmp_path: Path, schemas: Registry) -> None:
    client = SchemaRegistryClient({"url": schemas.url})
    first = record("Order", id="int", amount="string")
    second = record("Order", id="long", amount="string", note=["null", "string"])
    old = AvroSerializer(client, json.dumps(first))
    new = AvroSerializer(client, json.dumps(second))
    values = [
        old({"id": 1, "amount": "1.10"}, VALUE),
        new({"id": 2**40, "amount": "2.20", "note": "x"}, VALUE),
        old({"id": 3, "amount": "3.30"}, VALUE),
        b"\x00\x00\x00\x00\x63rest",
        b'{"id": 4}',
        b"\x00\x00",
    ]
    orders = decoder_of(tmp_path, "{type: avro}", schemas.url)
    got = orders.decode(values, None)
    assert got.rows.to_pylist() == [
        {"id": 1, "amount": "1.10", "note": None},
        {"id": 2**40, "amount": "2.20", "note": "x"},
        {"id": 3, "amount": "3.30", "note": None},
    ]
    head = "it does not begin with zero and the number of a schema"
    assert reasons(got) == {3: "schema 99 is not in the registry", 4: head, 5: head}
    before = len(schemas.asked)
    assert orders.decode(values[:3], got.rows.schema).rows.num_rows == 3
    assert len(schemas.asked) == before


def test_avro_schemas_that_build_on_others(tmp_path: Path, schemas: Registry) -> None:
    client = SchemaRegistryClient({"url": schemas.url})
    place = record("Place", latitude="double")
    client.register_schema("place", Schema(json.dumps(place), "AVRO"))
    told = json.dumps(record("Order", id="long", place="Place"))
    references = [SchemaReference("Place", "place", 1)]
    serializer = AvroSerializer(client, Schema(told, "AVRO", references))
    value = serializer({"id": 1, "place": {"latitude": 1.5}}, VALUE)
    got = decoder_of(tmp_path, "{type: avro}", schemas.url).decode([value], None)
    assert got.rows.to_pylist() == [{"id": 1, "place__latitude": 1.5, "amount": None}]


def test_a_registry_that_is_away_is_no_bad_message(tmp_path: Path, schemas: Registry) -> None:
    client = SchemaRegistryClient({"url": schemas.url})
    value = AvroSerializer(client, json.dumps(record("Order", id="long")))({"id": 1}, VALUE)
    more = f", username: {USER}, password: {PASSWORD}"
    orders = decoder_of(tmp_path, "{type: avro}", schemas.url, more)
    schemas.is_away = True
    with pytest.raises(RegistryAwayError, match="does not give schemas") as caught:
        orders.decode([value], None)
    assert isinstance(caught.value, TarnError)
    assert PASSWORD not in str(caught.value)
    schemas.is_away, schemas.is_locked = False, True
    assert orders.decode([value], None).rows["id"].to_pylist() == [1]
    with pytest.raises(RegistryAwayError):
        decoder_of(tmp_path, "{type: avro}", schemas.url).decode([value], None)
    with pytest.raises(RegistryAwayError):
        decoder_of(tmp_path, "{type: avro}", "http://127.0.0.1:1").decode([value], None)


def test_a_number_is_no_time(tmp_path: Path) -> None:
    told = record("Order", at="long")
    (tmp_path / "order.avsc").write_text(json.dumps(told))
    orders = decoder_of(tmp_path, "{type: avro, schema_file: order.avsc}")
    known = pa.schema([("at", pa.timestamp("us"))])
    got = orders.decode([avro(told, {"at": 1514764800000})], known)
    assert got.rows["at"].to_pylist() == ["1514764800000"]


@pytest.mark.parametrize(
    ("format", "what"),
    [
        ("{type: avro, schema_file: nowhere.avsc}", "schema_file"),
        ("{type: protobuf, descriptor_file: nowhere.pb, message: x}", "descriptor_file"),
        ("{type: avro}", "none is declared"),
        ("{type: protobuf}", "none is declared"),
    ],
)
def test_a_schema_that_cannot_be_had_is_told(tmp_path: Path, format: str, what: str) -> None:
    with pytest.raises(TarnError, match=what) as caught:
        decoder_of(tmp_path, format)
    assert "shop.yml" in str(caught.value)


PROTO = """
syntax = "proto3";
package shop.v1;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/duration.proto";
enum Status { UNKNOWN = 0; PLACED = 1; }
message Ignored { int32 x = 1; }
message Order {
  message Line { string sku = 1; int64 units = 2; Status status = 3; }
  int64 orderId = 1;
  uint64 big = 2;
  string amount = 3;
  google.protobuf.Timestamp placed_at = 4;
  google.protobuf.StringValue note = 5;
  google.protobuf.Int64Value count = 6;
  Status status = 7;
  optional int32 rating = 8;
  oneof paid { string card = 9; int32 points = 10; }
  repeated Line lines = 11;
  repeated int64 ids = 12;
  map<string, int64> stock = 13;
  Delivery delivery = 14;
  google.protobuf.Struct more = 15;
  google.protobuf.Duration took = 16;
  bytes raw = 17;
  Order parent = 18;
  double price = 19;
}
message Delivery { double latitude = 1; Place place = 2; }
message Place { string city = 1; }
"""


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proto")
    (folder / "order.proto").write_text(PROTO)
    include = Path(protoc.__file__).parent / "_proto"
    out = folder / "order.pb"
    asked = [f"-I{folder}", f"-I{include}", "--include_imports", f"-o{out}", "order.proto"]
    assert protoc.main(["protoc", *asked]) == 0
    return out


@pytest.fixture(scope="module")
def order(descriptors: Path) -> Any:
    """The class of the message."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(descriptors.read_bytes()).file:
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("shop.v1.Order"))


def full(order: Any) -> Any:
    made = order(
        orderId=2**60 + 1, big=2**64 - 1, amount="1.10", note={"value": ""}, count={"value": 0},
        status=1, rating=0, points=5, ids=[2**60 + 1, 2], stock={"a": 2**60 + 1},
        raw=b"\x00\xff", price=0.1,
        delivery={"latitude": 52.5, "place": {"city": "é"}},
        lines=[{"sku": "a", "units": 2**60 + 1, "status": 1}, {"sku": "b"}],
    )  # fmt: skip
    made.placed_at.FromDatetime(AT)
    made.took.FromJsonString("1.5s")
    made.more.update({"x": [1, "y"]})
    made.parent.orderId = 7
    return made


FULL = {
    "order_id": 2**60 + 1,
    "big": Decimal(2**64 - 1),
    "amount": "1.10",
    "placed_at": NAIVE,
    "note": "",
    "count": 0,
    "status": "PLACED",
    "rating": 0,
    "card": None,
    "points": 5,
    "lines": f'[{{"sku":"a","units":{2**60 + 1},"status":"PLACED"}},{{"sku":"b"}}]',
    "ids": f"[{2**60 + 1},2]",
    "stock": f'{{"a":{2**60 + 1}}}',
    "delivery__latitude": 52.5,
    "delivery__place__city": "é",
    "more": '{"x":[1.0,"y"]}',
    "took": "1.500s",
    "raw": b"\x00\xff",
    "parent": '{"orderId":7}',
    "price": 0.1,
}


def test_protobuf_by_a_file(tmp_path: Path, descriptors: Path, order: Any) -> None:
    (tmp_path / "order.pb").write_bytes(descriptors.read_bytes())
    format = "{type: protobuf, descriptor_file: order.pb, message: shop.v1.Order}"
    orders = decoder_of(tmp_path, format)
    good = full(order).SerializeToString()
    unknown = order(status=9).SerializeToString()
    got = orders.decode([good, b"", None, good[:-1], unknown], None)
    first, empty, other = got.rows.to_pylist()
    assert first == FULL
    assert other["status"] == "9"
    assert {name for name, value in empty.items() if value is not None} == {
        "order_id", "big", "amount", "status", "raw", "price",
    }  # fmt: skip
    assert empty["delivery__latitude"] is None
    told = reasons(got)
    assert told[2] == "no value (a tombstone)"
    assert told[3].startswith("it is not of its schema")
    with pytest.raises(TarnError, match="descriptor_file"):
        decoder_of(tmp_path, "{type: protobuf, descriptor_file: order.pb, message: shop.Nothing}")


def test_protobuf_by_a_registry(tmp_path: Path, schemas: Registry, order: Any) -> None:
    client = SchemaRegistryClient({"url": schemas.url})
    conf = {"use.deprecated.format": False}
    value = ProtobufSerializer(order, client, conf)(full(order), VALUE)
    place = order.DESCRIPTOR.file.message_types_by_name["Delivery"]
    delivery = GetMessageClass(place)(latitude=1.5)
    other = ProtobufSerializer(type(delivery), client, conf)(delivery, VALUE)
    assert value is not None
    assert other is not None
    orders = decoder_of(tmp_path, "{type: protobuf}", schemas.url)
    nothing = value[:5] + b"\x02\x12" + value[7:]
    got = orders.decode([value, nothing, other, value[:5]], None)
    first, last = got.rows.to_pylist()
    assert {name: first[name] for name in FULL} == FULL
    assert last["latitude"] == 1.5
    assert reasons(got) == {
        1: "its schema has no message 9",
        3: "it ends before it says which message it is",
    }


def test_protobuf_that_was_registered_as_text(
    tmp_path: Path, schemas: Registry, order: Any
) -> None:
    client = SchemaRegistryClient({"url": schemas.url})
    number = client.register_schema("orders-value", Schema(PROTO, "PROTOBUF"))
    value = b"\x00" + number.to_bytes(4, "big") + b"\x02\x02" + full(order).SerializeToString()
    got = decoder_of(tmp_path, "{type: protobuf}", schemas.url).decode([value], None)
    assert got.rows.to_pylist() == [{**FULL}]
