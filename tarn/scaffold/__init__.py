"""Writes what a user would else write by hand: a project, a declared system, its first models."""
