"""dbt-tests-adapter, dbt Labs' own tests of an adapter, against Delta tables in a lake."""

from tests.adapter import test_changed
from tests.adapter.not_applicable import REASONS
from tests.adapter.public import public_classes

OFFERED = public_classes()
CHANGED = {
    base.__name__
    for cls in vars(test_changed).values()
    if isinstance(cls, type) and cls.__module__ == test_changed.__name__
    for base in cls.__bases__
    if base in OFFERED.values()
}

for _name, _class in OFFERED.items():
    if _name not in REASONS and _name not in CHANGED:
        globals()[f"Test{_name}"] = type(f"Test{_name}", (_class,), {"__module__": __name__})


def test_every_class_runs_or_has_its_reason() -> None:
    assert REASONS.keys() <= OFFERED.keys(), "a reason for a class that is there no more"
    assert not REASONS.keys() & CHANGED, "a class that runs and has a reason not to"
    run = {name.removeprefix("Test") for name in globals() if name.startswith("Test")}
    assert run | CHANGED | REASONS.keys() == OFFERED.keys()
