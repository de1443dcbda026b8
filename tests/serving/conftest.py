"""Fixtures of the serving tests; support/serving_fixture.py makes them."""

from support.serving_fixture import home, stand

__all__ = ["home", "stand"]
