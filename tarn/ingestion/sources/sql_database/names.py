"""Names of tables and columns in the lake: snake case, and each name once."""

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import md5

from dlt.common.normalizers.naming.snake_case import NamingConvention

from tarn.ingestion.landed import DELETED, DELETED_AT, LOAD_ID, LOADED_AT, SOURCE_FILE

_TAKEN = (LOAD_ID, LOADED_AT, SOURCE_FILE, DELETED, DELETED_AT)


def lake_names(names: Sequence[str]) -> list[str]:
    """Names in snake case. Of several that become the same, as `Ord` and `ord` or two in Chinese,
    those that were changed get a mark of their own, which does not hang on the others."""
    naming = NamingConvention()
    spelt = [naming.normalize_identifier(name) for name in names]
    often = Counter(spelt)
    return [
        f"{new}_{_mark(name)}" if (often[new] > 1 and new != name) or new in _TAKEN else new
        for name, new in zip(names, spelt, strict=True)
    ]


def table_names(places: Sequence[tuple[str | None, str]], default: str | None) -> list[str]:
    """Names of tables, by schema and name: `table`, or `schema__table` where the connection's own
    schema, or a third, has that one too."""
    plain: list[str] = [""] * len(places)
    for schema in {schema for schema, _ in places}:
        own = [i for i, place in enumerate(places) if place[0] == schema]
        for i, name in zip(own, lake_names([places[i][1] for i in own]), strict=True):
            plain[i] = _declarable(name)
    often = Counter(plain)
    return [
        f"{_declarable(lake_names([str(schema)])[0])}__{name}"
        if often[name] > 1 and schema != default
        else name
        for (schema, _), name in zip(places, plain, strict=True)
    ]


def _declarable(name: str) -> str:
    """A name that a declaration may have as key."""
    return name if re.match("[a-z]", name) else f"t{name}" if name[:1] == "_" else f"t_{name}"


def _mark(name: str) -> str:
    return md5(name.encode(), usedforsecurity=False).hexdigest()[:6]
