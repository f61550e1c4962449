"""What the operating system says of a disk, in words for who has to mend it."""

import errno
import os

from tarn.errors import TarnError

_MEANINGS = {
    errno.ENOSPC: ("the disk is full", "make room, then run it again"),
    errno.EDQUOT: ("the disk quota is used up", "make room, then run it again"),
    errno.EROFS: (
        "the lake is on a read-only disk",
        "mount it writable; tarn query and tarn release list work as it is",
    ),
    errno.EACCES: ("no permission to write", "run as the user who owns the lake"),
}


def disk_failure(error: BaseException, where: str) -> TarnError | None:
    """The failure of a disk that an error, from whichever library, tells of; None for another.

    Nothing of what failed is visible to readers: all that they see is put in place whole.
    """
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    for code, (what, fix) in _MEANINGS.items():
        if number == code or f"os error {code})" in text or os.strerror(code) in text:
            return TarnError(f"{what}; nothing of this write is visible", where, fix)
    return None
