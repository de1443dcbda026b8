"""Limit, size and end positions: refusals, budgets, caps, circuit breakers, exits."""
