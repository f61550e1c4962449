"""Drills: faults done to a real lake on purpose. `python -m tests.drills` lists them."""
