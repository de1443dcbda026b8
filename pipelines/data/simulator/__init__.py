"""The simulated market and its limit order book."""
