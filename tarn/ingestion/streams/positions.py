"""How far each partition has been read, as application transactions of the table's own commits.

A transaction's number has 63 bits. A greater position is kept in several, the lowest bits first.
"""

from collections.abc import Mapping
from typing import TypeAlias

from deltalake import DeltaTable

from tarn.ingestion.streams import Position

_BITS = 63
Held: TypeAlias = tuple[int, ...]
"""The numbers of one partition as a table has them; none if it was never read."""


def held(table: DeltaTable | None, partition: str) -> Held:
    """What a table says of a partition."""
    numbers: list[int] = []
    while table is not None:
        number = table.transaction_version(_application(partition, len(numbers)))
        if number is None:
            break
        numbers.append(int(number))
    return tuple(numbers)


def position(numbers: Held) -> Position | None:
    """The position that a partition's numbers are."""
    if not numbers:
        return None
    return sum(number << (_BITS * i) for i, number in enumerate(numbers))


def numbers(reached: Position, before: Held) -> Held:
    """A position as numbers: no fewer than there are, so that none of those stays behind."""
    found: list[int] = []
    while reached or len(found) < max(len(before), 1):
        found.append(reached & ((1 << _BITS) - 1))
        reached >>= _BITS
    return tuple(found)


def transactions(partitions: Mapping[str, Held]) -> dict[str, int]:
    """What a commit says of its partitions."""
    return {
        _application(partition, i): number
        for partition, numbers in partitions.items()
        for i, number in enumerate(numbers)
    }


def fence(partitions: Mapping[str, Held]) -> dict[str, int | None]:
    """What must be true of a table before such a commit: these numbers, and no further one."""
    ends = {_application(name, len(numbers)): None for name, numbers in partitions.items()}
    return {**transactions(partitions), **ends}


def _application(partition: str, part: int) -> str:
    return f"tarn.stream.{part}:{partition}"
