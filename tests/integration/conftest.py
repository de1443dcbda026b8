"""Fixtures of the integration tests; support/stack.py makes them."""

from pathlib import Path

import pytest
from support.stack import HELD, refused, second, stack

__all__ = ["refused", "second", "stack"]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    """Stop the servers after the last of their tests: idle, they use a tenth of a processor."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        HELD.close()
