"""Figures behind the claims of the README: `python -m benchmarks`, `python -m benchmarks.evidence`."""
