"""Start servers of other projects, each behind our guard."""
