"""Records that the Kinesis Producer Library puts together into one, taken apart.

Such a record is four bytes of magic, a protobuf message and its MD5
(github.com/awslabs/amazon-kinesis-producer, aggregation-format.md).
"""

from collections.abc import Iterator
from hashlib import md5

_MAGIC = b"\xf3\x89\x9a\xc2"
_MD5_BYTES = 16
_VARINT, _BYTES = 0, 2
_KEYS, _RECORDS = 1, 3
"""Fields of the aggregate."""
_KEY_INDEX, _DATA = 1, 3
"""Fields of a record in it."""


def taken_apart(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """Partition key and data of each record within; None of a record that is not put together."""
    if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + _MD5_BYTES:
        return None
    message = data[len(_MAGIC) : -_MD5_BYTES]
    if md5(message, usedforsecurity=False).digest() != data[-_MD5_BYTES:]:
        return None
    try:
        fields = list(_fields(message))
        keys = [value for field, value in fields if field == _KEYS]
        return [_record(value, keys) for field, value in fields if field == _RECORDS]
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _record(message: int | bytes, keys: list[int | bytes]) -> tuple[bytes, bytes]:
    assert isinstance(message, bytes)
    fields = dict(_fields(message))
    index, data = fields[_KEY_INDEX], fields[_DATA]
    key = keys[index] if isinstance(index, int) else None
    if not isinstance(key, bytes) or not isinstance(data, bytes):
        raise ValueError("no key, or no data")
    return key, data


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message that has but numbers and bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == _VARINT:
            yield tag >> 3, value
        elif tag & 7 == _BYTES and at + value <= len(message):
            yield tag >> 3, message[at : at + value]
            at += value
        else:
            raise ValueError("no message of an aggregate")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
