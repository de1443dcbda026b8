"""Start, stop, check, back up and prune an installation."""
