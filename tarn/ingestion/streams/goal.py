"""When reading by `--once` ends: all that waited when it began has come."""

from time import monotonic

from tarn.ingestion.streams import Batch, Place, Position

_IDLE_SECONDS = 5.0
"""After which a partition of unknown length counts as read to its end."""
_UNASSIGNED_SECONDS = 30.0
"""After which no partition is expected any more: another consumer has them all."""


class Goal:
    """What waited in each partition when it was first asked, so that reading can end."""

    def __init__(self) -> None:
        self._left: dict[Place, int | None] = {}
        """Messages still to come of those that waited; None if nobody can tell."""
        self._position: dict[Place, Position] = {}
        self._until: dict[Place, Position] = {}
        self._came_at = monotonic()
        self._gone: set[str] = set()

    def taken(self, place: Place, reached: Position | None) -> None:
        self._came_at = monotonic()
        self._position.pop(place, None)
        if reached is not None:
            self._position[place] = reached

    def came(self, place: Place, batch: Batch) -> None:
        self._came_at = monotonic()
        if batch.position is not None and batch.offsets and isinstance(batch.offsets[0], int):
            self._position[place] = batch.position
        elif (left := self._left.get(place)) is not None:
            self._left[place] = max(0, left - len(batch.values))

    def lag(self, place: Place, lag: int | None) -> None:
        """Told after what was read by then."""
        if place in self._until:
            self._left[place] = max(0, self._until[place] - self._position[place])
        elif lag is not None and place in self._position:
            self._until[place], self._left[place] = self._position[place] + lag, lag
        elif lag is not None and self._left.get(place) is None:
            self._left[place] = lag
        else:
            self._left.setdefault(place, lag)

    def forget(self, place: Place) -> None:
        for known in (self._left, self._position, self._until):
            known.pop(place, None)

    def leave(self, table: str) -> None:
        for place in [each for each in self._left if each[0] == table]:
            self.forget(place)
        self._gone.add(table)

    def is_reached(self, at: float) -> bool:
        """All has come, or nothing comes any more."""
        left = [n for place, n in self._left.items() if place[0] not in self._gone]
        if not left:
            return at - self._came_at > _UNASSIGNED_SECONDS
        return all(each == 0 for each in left) or at - self._came_at > _IDLE_SECONDS
