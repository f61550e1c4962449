"""Alerts: exposures of kind alert, evaluated again and again, and told to who must know.

Each alert has up to four conditions, each with its own message: `value` (what is measured is out
of its bounds), `no_data` (nothing arrives), `late_data` (what arrives is old) and `failure` (it
cannot be evaluated). Their changes are rows of `tarn.alerts`, which is all that is remembered.
"""
