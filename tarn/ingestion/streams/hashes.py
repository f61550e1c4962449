"""Hashes in order, each with the time at which it came: few in memory, many on disk.

Their file has no name: it goes with whoever reads it, however the process ends.
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt

IN_MEMORY = 1_000_000
"""Of one run; also those of larger ones that are merged at a time."""
_WORD = 8
Hashes = npt.NDArray[np.uint64]
Instants = npt.NDArray[np.int64]
Part = tuple[Hashes, Instants]


@dataclass(frozen=True)
class Run:
    """Hashes in order, when each came (microseconds since 1970), first and last of these."""

    hashes: Hashes
    at: Instants
    first: int
    last: int
    _mapped: mmap.mmap | None = None

    @classmethod
    def of(cls, parts: Iterable[Part], count: int, folder: Path) -> "Run":
        """Of hashes that come in order; `count` says how many. The folder is for its file."""
        if count <= IN_MEMORY:
            hashes, at = (np.concatenate(each) for each in zip(*parts, strict=True))
            return cls(hashes, at, int(at.min()), int(at.max()))
        instants, done = set[int](), 0
        with TemporaryFile(dir=folder) as file:
            for hashes, at in parts:
                for begin, values in ((0, hashes), (count, at)):
                    file.seek(_WORD * (begin + done))
                    file.write(values.data)
                done += len(hashes)
                instants |= {int(at.min()), int(at.max())}
            file.flush()
            mapped = mmap.mmap(file.fileno(), 2 * _WORD * count, access=mmap.ACCESS_READ)
        words = np.frombuffer(mapped, np.uint64)
        hashes, at = words[:count], words[count:].view(np.int64)
        return cls(hashes, at, min(instants), max(instants), mapped)

    def merged(self, other: "Run", folder: Path) -> "Run":
        count = len(self.hashes) + len(other.hashes)
        return Run.of(_merged(self, other, -(-count // IN_MEMORY)), count, folder)

    def find(self, sought: Hashes) -> tuple[npt.NDArray[np.intp], set[int]]:
        """Which of some hashes, that are in order, are here, and when those came."""
        left = np.searchsorted(self.hashes, sought)
        here = np.flatnonzero(left < len(self.hashes))
        here = here[self.hashes[left[here]] == sought[here]]
        right = np.searchsorted(self.hashes, sought[here], "right")
        instants: set[int] = set()
        for begin, end in zip(left[here], right, strict=True):
            instants.update(self.at[begin:end].tolist())
        self.release()
        return here, instants

    def release(self) -> None:
        """What has been read of the file is the system's to keep, not ours."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)


def in_order(hashes: Hashes, at: Instants) -> Part:
    order = np.argsort(hashes, kind="stable")
    return hashes[order], at[order]


def _merged(one: Run, other: Run, parts: int) -> Iterator[Part]:
    """Hashes are spread evenly, so that a part of their range is one of their number."""
    limits = np.array([(i << 64) // parts for i in range(1, parts)], np.uint64)
    for (a, b), (c, d) in zip(_cut(one, limits), _cut(other, limits), strict=True):
        hashes = np.concatenate([one.hashes[a:b], other.hashes[c:d]])
        if len(hashes):
            yield in_order(hashes, np.concatenate([one.at[a:b], other.at[c:d]]))
        one.release()
        other.release()


def _cut(run: Run, limits: Hashes) -> Iterator[tuple[int, int]]:
    return pairwise([0, *np.searchsorted(run.hashes, limits).tolist(), len(run.hashes)])
