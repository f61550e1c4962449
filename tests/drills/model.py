"""The state machine of tests/engine/test_lake_machine.py, with more examples and longer ones."""

from pathlib import Path

from hypothesis import HealthCheck, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.drills.telling import Drill
from tests.engine.test_lake_machine import DID, LakeMachine

_STEPS = 50


def drill(number: int, rounds: int, _: Path) -> Drill:
    """So many examples, each of up to fifty steps."""
    told = Drill("model", number, rounds)
    chosen = settings(
        max_examples=rounds,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.normal,
    )
    DID.clear()
    try:
        run_state_machine_as_test(seed(number)(LakeMachine), settings=chosen)
    except Exception as error:
        told.fault(
            "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        )
    told.did.update(DID)
    told.checked["examples against the model"] = rounds
    return told
