"""What is due in market time: which deployments to start now, and what was missed. Pure: every time is an argument.

A market that runs faster than the time of day outruns its jobs. Occurrences that pass while a run is under way, or
while nothing runs, coalesce: one run starts for the newest of them, and the others are counted as missed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

APART = timedelta(seconds=60)  # of wall time, between the starts of two runs of a deployment
DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Progress:
    """Hold how far one deployment is.

    through  newest occurrence in market time that was started, or the one before the first look
    started  when its newest run was started, time of day; None = none was
    missed   occurrences for which no run of their own was started, in all
    """

    through: datetime
    started: datetime | None = None
    missed: int = 0


@dataclass(frozen=True, slots=True)
class Due:
    """Hold one run that is due: its deployment, the newest occurrence in market time, and how many it stands for."""

    deployment: str
    occurrence: datetime
    coalesced: int


def begin(every: timedelta, market: datetime) -> Progress:
    """Return the progress of a deployment that is seen for the first time: nothing is due before its next occurrence.

    Occurrences lie on whole intervals of the day in UTC; those of several days count from the day of the first look.
    """
    step = min(every, DAY)
    return Progress(market - (market - EPOCH) % step)


def next_occurrence(progress: Progress, every: timedelta) -> datetime:
    """Return the next occurrence that is not started, in market time; it may have passed."""
    return progress.through + every


def waiting(progress: Progress, every: timedelta, market: datetime) -> int:
    """Return how many occurrences have passed and are not started."""
    return max(0, (market - progress.through) // every)


def missed(progress: Progress, every: timedelta, market: datetime) -> int:
    """Return the occurrences that were missed in all, with those that coalesce in the next run."""
    return progress.missed + max(0, waiting(progress, every, market) - 1)


def brought_up(
    plan: Mapping[str, timedelta], known: Mapping[str, Progress], market: datetime, resumed: bool = False
) -> dict[str, Progress]:
    """Return the progress of every deployment of the plan.

    One that is new, or whose market went back, begins at this market time; so do all where another clock started the
    runs until now (`resumed`). What was missed before stays counted.

    plan  deployment → its interval in market time
    """
    found = {}
    for name, every in plan.items():
        progress = known.get(name)
        if progress is None:
            found[name] = begin(every, market)
        elif resumed or progress.through > market:
            found[name] = replace(progress, through=begin(every, market).through)
        else:
            found[name] = progress
    return found


def due(
    plan: Mapping[str, timedelta],
    known: Mapping[str, Progress],
    market: datetime,
    wall: datetime,
    busy: Collection[str] = (),
) -> list[Due]:
    """Return what to start now, in the order of the plan.

    known   progress of every deployment of the plan, as of `brought_up`
    busy    deployments with a run under way, or whose work another run holds up
    """
    found = []
    for name, every in plan.items():
        progress = known[name]
        passed = waiting(progress, every, market)
        rested = progress.started is None or wall - progress.started >= APART
        if passed and rested and name not in busy:
            found.append(Due(name, progress.through + passed * every, passed))
    return found


def after_start(progress: Progress, run: Due, wall: datetime) -> Progress:
    """Return the progress once a run was started: it stands for all that coalesced in it."""
    return Progress(run.occurrence, wall, progress.missed + run.coalesced - 1)
