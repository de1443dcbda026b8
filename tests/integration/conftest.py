"""Fixtures of the integration tests; what they are made of is in live_stack.py."""

from pathlib import Path

import pytest
from support.stack import HELD, refused, second, stack

__all__ = ["refused", "second", "stack"]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    """The servers stop after the last of their tests, not of all tests: idle, they take a tenth of a processor."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        HELD.close()
