"""Readers of recorded markets: files, exchanges, recordings, context."""
