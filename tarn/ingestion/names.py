"""Names of columns in the lake: snake case as dlt spells it, and each name once."""

from collections import Counter
from collections.abc import Sequence
from hashlib import md5

from dlt.common.normalizers.naming.snake_case import NamingConvention

from tarn.errors import TarnError
from tarn.ingestion.landed import DELETED, DELETED_AT, LOAD_ID, LOADED_AT, SOURCE_FILE

_DLT = ("_dlt_id", "_dlt_load_id", "_dlt_root_id")
_INNER = ("_position", "_nth", "_content")
TAKEN = frozenset({LOAD_ID, LOADED_AT, SOURCE_FILE, DELETED, DELETED_AT, *_DLT, *_INNER})
"""Names of columns that are Tarn's own, in the lake or on the way there."""
_NAMING = NamingConvention()


def snake_case(name: str) -> str:
    return _NAMING.normalize_identifier(name)


def lake_names(names: Sequence[str]) -> list[str]:
    """Names in snake case. Of several that become the same, as `Ord` and `ord` or two in Chinese,
    those that were changed get a mark of their own, which does not hang on the others."""
    spelt = [snake_case(name) for name in names]
    often = Counter(spelt)
    return [
        f"{new}_{_mark(name)}" if (often[new] > 1 and new != name) or new in TAKEN else new
        for name, new in zip(names, spelt, strict=True)
    ]


def column_names(names: Sequence[str], where: str) -> list[str]:
    """The same for a source's columns; raises TarnError for a name that is given twice."""
    if twice := [name for name, often in Counter(names).items() if often > 1]:
        raise TarnError(f"several columns are called {', '.join(twice)}", where)
    return lake_names(names)


def _mark(name: str) -> str:
    return md5(name.encode(), usedforsecurity=False).hexdigest()[:6]
