"""Names of a database's tables in the lake."""

import re
from collections import Counter
from collections.abc import Sequence

from tarn.ingestion.names import lake_names


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
