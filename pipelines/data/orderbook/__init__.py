"""The limit order book and what is computed from its events."""
