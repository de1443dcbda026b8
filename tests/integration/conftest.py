"""Fixtures of the integration tests; what they are made of is in live_stack.py."""

from live_stack import refused, second, stack

__all__ = ["refused", "second", "stack"]
