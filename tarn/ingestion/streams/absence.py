"""Columns that no longer come.

Commits are many and small, and what comes together is often alike, as one visitor has sent it: so
messages are counted since a column was last there, and of one that some rows lack many have to.
"""

import pyarrow as pa

from tarn.ingestion.contract import by_chance
from tarn.ingestion.landed import Landed

_ALIKE = 20
"""Messages that tell as much as one."""


class Absence:
    """Of one table's columns."""

    def __init__(self) -> None:
        self._without: dict[str, int] = {}
        """Rows since a column was last there."""
        self._gone: set[str] = set()
        self._shares: dict[str, float] = {}
        """How likely a row comes without a column."""

    def after(self, rows: pa.RecordBatch, landed: Landed) -> frozenset[str]:
        """The columns of the table that have not come for longer than chance explains."""
        names = set(landed.schema.names if landed.schema is not None else ())
        lacks = names - set(rows.schema.names)
        self._without = {name: self._without.get(name, 0) + rows.num_rows for name in lacks}
        self._gone &= lacks
        for name in lacks - self._gone:
            if self._is_by_chance(name):
                continue
            # What was known may be of long ago.
            self._shares[name] = _share(landed.again(), name)
            if not self._is_by_chance(name):
                self._gone.add(name)
        return frozenset(self._gone)

    def _is_by_chance(self, name: str) -> bool:
        return by_chance(self._without[name], self._shares.get(name, 0))


def _share(landed: Landed, name: str) -> float:
    share = landed.share_of_nulls(name)
    return share ** (1 / _ALIKE) if landed.nulls(name) else share
