"""Fixtures of the serving tests; what they are made of is in serving_stand.py."""

from support.serving_fixture import home, stand

__all__ = ["home", "stand"]
