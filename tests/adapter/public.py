"""The classes that dbt-tests-adapter offers, found by looking: none can be left out unnoticed."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dbt.tests.adapter

PACKAGE = dbt.tests.adapter.__name__


def public_classes() -> dict[str, type]:
    """By name, each class that holds tests. The package's own runs of them on Postgres are not."""
    found: dict[str, type] = {}
    for module in _modules():
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and _holds_tests(cls) and not _is_bare(cls):
                assert found.setdefault(name, cls) is cls, f"{name} is there twice"
    return found


def _modules() -> Iterator[ModuleType]:
    root = Path(next(iter(dbt.tests.adapter.__path__)))
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        yield importlib.import_module(".".join([PACKAGE, *parts]))


def _holds_tests(cls: type) -> bool:
    return any(name.startswith("test") and callable(getattr(cls, name)) for name in dir(cls))


def _is_bare(cls: type) -> bool:
    """Whether it only gives another class a name that pytest collects."""
    own = {name for name in vars(cls) if not name.startswith("__")}
    return cls.__name__.startswith("Test") and not own
