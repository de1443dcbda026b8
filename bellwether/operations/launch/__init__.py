"""Servers of other projects, each with our guard around it."""
