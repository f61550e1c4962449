"""How far each table of a followed database has come: kept in the lake, so nowhere else.

A commit of rows carries the position up to which it holds all changes, as its transaction. When
other tables change, positions move on without a commit; that is kept in a file, which is written
before the slot is advanced. A table's own commit counts for more than the file.
"""

import hashlib
import json
import socket
from collections.abc import Collection
from dataclasses import asdict, dataclass, field

import obstore
from deltalake import DeltaTable
from obstore.exceptions import NotFoundError

from tarn.errors import TarnError
from tarn.storage.lake import OWN_SCHEMA, Lake

_LONGEST_NAME = 40
"""Of the system in a slot's name, of which PostgreSQL takes 63 characters."""


@dataclass
class Position:
    """A position of a table that no commit carries."""

    committed: int | None = None
    """The position in the table's latest commit when this was written; None before the first."""
    upto: int = 0
    """Up to here there was nothing more to commit then."""


@dataclass
class Positions:
    """Of one system in one lake."""

    slot: str
    """Of the replication slot, and of the publication."""
    root: str
    """Of the lake: a copy must not move on the slot of the original."""
    tables: dict[str, Position] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """Application under which commits carry their position."""
        return f"cdc:{self.slot}"

    def of(self, name: str, table: DeltaTable | None) -> int | None:
        """Up to where a table holds all changes; None if it does not exist.

        Raises TarnError for a table that has rows from elsewhere, or has gone back.
        """
        if table is None:
            return None
        committed = table.transaction_version(self.mark)
        kept = self.tables.get(name)
        if committed is None or kept is None or committed < (kept.committed or 0):
            raise TarnError(f"publication {self.slot} did not have the table all the time")
        return max(committed, kept.upto) if committed == kept.committed else int(committed)

    def write(self, lake: Lake, system: str) -> None:
        obstore.put(lake.objects, _path(system), json.dumps(asdict(self), indent=2).encode())


def read_positions(lake: Lake, system: str, where: str) -> Positions:
    """What the lake knows of a system; raises TarnError in a copied lake."""
    try:
        data = json.loads(bytes(obstore.get(lake.objects, _path(system)).bytes()))
    except (NotFoundError, FileNotFoundError):
        return Positions(_slot_name(lake, system), lake.root)
    tables = {name: Position(**position) for name, position in data.pop("tables").items()}
    positions = Positions(**data, tables=tables)
    if positions.root != lake.root:
        raise TarnError(
            f"this lake was copied or moved from {positions.root}, and two lakes cannot follow"
            f" one slot ({positions.slot})",
            where,
            f"delete the lake's {_path(system)} and the system's tables to load them anew here",
        )
    return positions


def least(positions: Collection[int | None]) -> int | None:
    """Up to where the slot may be advanced."""
    return min((each for each in positions if each is not None), default=None)


def shown(lsn: int) -> str:
    """A position as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _slot_name(lake: Lake, system: str) -> str:
    """Two lakes have different slots: a local one is told by its machine and folder."""
    place = f"{socket.gethostname()}:{lake.root}" if lake.is_local else lake.root
    return f"tarn_{system[:_LONGEST_NAME]}_{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def _path(system: str) -> str:
    return f"{OWN_SCHEMA}/cdc/{system}.json"
