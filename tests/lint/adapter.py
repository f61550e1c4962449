"""Stand-in for dbt's adapter: any dispatched macro is a call of that name."""

from collections.abc import Callable


def dispatch(name: str, package: str | None = None) -> Callable[..., str]:
    return lambda *arguments: f"{name}({', '.join(map(str, arguments))})"


def quote(name: str) -> str:
    """A name that needs no quotes: to sqlfluff not all are needed that an engine needs."""
    return f"quoted_{name}"
