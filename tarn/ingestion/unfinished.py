"""Tables that are not what their source holds: a few rows to try out, or a full refresh that was
killed between its commits. The next load reads such a table anew, all of it, and replaces it.

The mark is in the lake, as all that matters.
"""

from contextlib import suppress

import obstore
from obstore.exceptions import NotFoundError

from tarn.storage.lake import OWN_SCHEMA, Lake


def is_unfinished(lake: Lake, table: str) -> bool:
    try:
        obstore.head(lake.objects, _mark(table))
    except (NotFoundError, FileNotFoundError):
        return False
    return True


def begin(lake: Lake, table: str) -> None:
    """Comes before the first commit."""
    if not lake.is_rehearsal:
        obstore.put(lake.objects, _mark(table), b"")


def finish(lake: Lake, table: str) -> None:
    """Comes after the last commit."""
    if not lake.is_rehearsal:
        with suppress(NotFoundError, FileNotFoundError):
            obstore.delete(lake.objects, _mark(table))


def _mark(table: str) -> str:
    return f"{OWN_SCHEMA}/unfinished/{table}"
