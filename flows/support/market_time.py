"""The time of learning: the market's own for a recorded or simulated universe, the time of day for one that trades."""

from datetime import datetime

from flows.support.installation import Installation, now


def learning_now(installation: Installation) -> datetime:
    """Placeholder in this branch."""
    del installation
    return now()
